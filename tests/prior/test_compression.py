"""Codes packed under exact priors: the same codes again, in as many bits as cross-entropy says, or one line."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from pathlib import Path

import pytest
import torch

from prior import compression
from prior.cli import main
from prior.model import Prior, PriorConfig
from prior.sequences import LayoutConfig
from tests.laws.priors import CASES, by_name
from tokenizers_vq.data.shards import read_codes

EXACT = [case for case in CASES if case.refusal is None and case.network.kind not in ("maskgit", "maskbit", "uvit")]


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_codes_come_back_in_the_bits_of_the_cross_entropy(case) -> None:
    torch.manual_seed(0)
    model = case.spread(classes=3)
    told = [index % 3 for index in range(150)]
    codes = model.sample(150, told)
    data = compression.compress(model, codes, told, batch_size=64)
    assert torch.equal(compression.decompress(model, data).codes, codes)
    with torch.no_grad():
        wanted = float(-model.log_likelihood(codes, told).sum()) / math.log(2)
    # The coder ends on whole words: at most two more than the codes need.
    assert 0.99 * wanted - 1 < compression.payload_bits(data) < 1.01 * wanted + 64
    assert torch.equal(codes, compression.decompress(model.train(), data).codes) and model.training


def test_a_long_row_of_codes_is_within_a_percent() -> None:
    torch.manual_seed(0)
    model = by_name("gpt, grid").spread()
    codes = model.sample(1000)
    data = compression.compress(model, codes, batch_size=500)
    with torch.no_grad():
        wanted = float(-model.log_likelihood(codes).sum()) / math.log(2)
    assert abs(compression.payload_bits(data) / wanted - 1) < 0.01
    wrong = compression.compress(model, codes.flip(0).roll(1, dims=1), batch_size=500)
    assert compression.payload_bits(wrong) > 1.01 * wanted  # codes that the prior did not expect cost more


def test_the_header_names_what_decides_the_probabilities() -> None:
    model = by_name("gpt, row").spread(classes=3)
    header = compression.read(compression.compress(model, model.sample(3, 1), 1))[0]
    assert header.prior == compression.prior_hash(model) and header.precision == "float32"
    assert header.machine["torch"] == torch.__version__ and header.machine["threads"] == torch.get_num_threads()
    assert header.told == 1 and header.rows == 3


def rewritten(data: bytes, **changes: object) -> bytes:
    """A file whose header says something else, with a checksum that fits."""
    start = len(compression.MAGIC) + 4
    (length,) = struct.unpack("<I", data[start - 4 : start])
    header = json.loads(zlib.decompress(data[start : start + length]))
    described = zlib.compress(json.dumps({**header, **changes}).encode())
    rest = data[start + length : -32]
    content = compression.MAGIC + struct.pack("<I", len(described)) + described + rest
    return content + hashlib.sha256(content).digest()


def test_what_cannot_be_unpacked_is_refused() -> None:
    torch.manual_seed(0)
    model, other = by_name("gpt, row").spread(), by_name("gpt, row").spread()
    codes = model.sample(20)
    data = compression.compress(model, codes)
    header = compression.read(data)[0].to_dict()
    bent = bytearray(data)
    bent[-40] ^= 1
    cases = {
        data[:-1]: "was cut or altered",
        data[:6]: "was altered",
        data[:14]: "was cut or altered",
        b"": "not a file of `tvq-prior compress`",
        bytes(bent): "was cut or altered",
        rewritten(data, prior="f" * 64): "packed with another prior (ffffffff)",
        rewritten(data, tokenizer="e" * 64): "codes of another tokenizer (eeeeeeee)",
        rewritten(data, machine={**header["machine"], "torch": "1.0"}): "packed with torch 1.0, here it is",
        rewritten(data, machine={**header["machine"], "constriction": "0.1"}): "packed with constriction 0.1",
        rewritten(data, machine={**header["machine"], "threads": "two"}): "names 'two' threads",
        rewritten(data, precision="bfloat16"): "packed with precision bfloat16",
        rewritten(data, codes="0" * 64): "this machine's probabilities differ",
        rewritten(data, words=1): "does not match its length",
    }
    for bad, says in cases.items():
        with pytest.raises(ValueError, match=says.replace("(", r"\(").replace(")", r"\)")) as caught:
            compression.decompress(model, bad, "x.bin")
        assert "\n" not in str(caught.value) and str(caught.value).startswith("x.bin")
    with pytest.raises(ValueError, match="packed with another prior"):
        compression.decompress(other, data)
    with pytest.raises(ValueError, match="a maskgit prior knows a bound"):
        compression.compress(by_name("maskgit, row").spread(), codes)
    with pytest.raises(ValueError, match="come from another tokenizer"):
        compression.compress(model, codes + 7)


def test_threads_are_those_of_the_file() -> None:
    model = by_name("gpt, row").spread()
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        data = compression.compress(model, codes := model.sample(4))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(compression.decompress(model, data).codes, codes)
    assert torch.get_num_threads() == before


def test_the_commands(codes: Path, tokenizer: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return (int(stop.value.code or 0), *capfd.readouterr())

    shards = read_codes(codes)
    torch.manual_seed(0)
    told = {"tokenizer": str(tokenizer), "fingerprint": shards.fingerprint}
    small = {"kind": "class", "num_classes": 3, "label_names": ["cat", "dog", "fox"]}
    for kind in ("gpt", "maskgit"):
        network, layout = by_name(f"{kind}, grid").network, LayoutConfig.of(shards.layout)
        made = Prior(PriorConfig(network=network, condition=small, layout=layout, **told))
        made.save_pretrained(tmp_path / kind)
    packed, unpacked = tmp_path / "codes.tvqp", tmp_path / "again"
    status, out, _ = run("compress", tmp_path / "gpt", codes, "--out", packed, "--device", "cpu")
    assert status == 0 and "cross-entropy" in out and f"{packed.stat().st_size:,} bytes" in out
    assert run("decompress", tmp_path / "gpt", packed, "--out", unpacked, "--device", "cpu")[0] == 0
    again = read_codes(unpacked)
    assert torch.equal(again.codes, shards.codes) and torch.equal(again.labels, shards.labels)
    assert again.keys == shards.keys and again.label_names == shards.label_names
    assert again.fingerprint == shards.fingerprint and again.tokenizer == shards.tokenizer
    (tmp_path / "cut").write_bytes(packed.read_bytes()[:-9])
    for arguments, says in {
        ("compress", tmp_path / "maskgit", codes, "--out", tmp_path / "x"): "a maskgit prior knows a bound",
        ("decompress", tmp_path / "gpt", tmp_path / "cut", "--out", tmp_path / "x"): "was cut or altered",
        ("decompress", tmp_path / "maskgit", packed, "--out", tmp_path / "x"): "a maskgit prior knows a bound",
        ("decompress", tmp_path / "gpt", packed, "--out", unpacked): "is there already",
        ("decompress", tmp_path / "gpt", tmp_path / "none", "--out", tmp_path / "x"): "No such file",
    }.items():
        status, _, err = run(*arguments, "--device", "cpu")
        assert status == 2 and says in err and len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / "x").exists()
