"""Bits and accuracy by level, scale and bit: exact where the prior is, and the parts make up the whole."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import prior
from prior.cli import main
from prior.scoring import Tally
from tests.laws.priors import by_name, rows

CASES = ("gpt, levels", "rq, levels", "var, scales", "maskgit, scales", "maskbit, levels of bits")


@pytest.mark.parametrize("name", CASES)
def test_the_parts_make_up_the_likelihood(name: str) -> None:
    torch.manual_seed(0)
    case = by_name(name)
    model, layout = case.spread(classes=3), case.layout
    tokens, told = rows(layout, 6), [0, 1, 2, 0, 1, 2]
    tally = Tally(model)
    tally.update(tokens[:4], told[:4])
    tally.update(tokens[4:], told[4:])
    with torch.no_grad():
        wanted = -model.log_likelihood(tokens, told).mean() / layout.length / math.log(2)
    assert tally.total().bits == pytest.approx(float(wanted), rel=1e-5)
    named = tally.by_kind()
    streams = named[: len(layout.sizes)]
    assert sum(row.codes for row in streams) == layout.length
    assert sum(row.bits * row.codes for row in streams) == pytest.approx(layout.length * tally.total().bits)
    rest = named[len(layout.sizes) :]
    assert len(rest) == (2 if "maskbit" in name else 0)
    if rest:
        assert [row.name for row in rest] == ["bits 0-1", "bits 2-3"]
        assert sum(row.bits for row in rest) == pytest.approx(tally.total().bits)


def test_accuracy_counts_the_likeliest_codes() -> None:
    model = by_name("gpt, levels").spread()
    tokens = model.sample(3, temperature=0)
    tally = Tally(model)
    tally.update(tokens, None)
    assert tally.total().accuracy == 1 and [row.accuracy for row in tally.by_kind()] == [1, 1]
    with torch.no_grad():
        logits = model.logits(other := rows(model.layout, 8))
    tally = Tally(model)
    tally.update(other, None)
    right = (logits.argmax(dim=-1) == other).double()
    assert tally.total().accuracy == pytest.approx(float(right.mean()))
    levels = [right[:, level::2].mean() for level in range(2)]
    assert [row.accuracy for row in tally.by_kind()] == pytest.approx([float(level) for level in levels])


@pytest.mark.parametrize("name", ["maskbit, levels of bits", "gpt, bits"])
def test_bits_of_a_code_add_up_to_it(name: str) -> None:
    torch.manual_seed(0)
    case = by_name(name) if "maskbit" in name else by_name("gpt, grid")
    layout = by_name("maskbit, bits").layout if "gpt" in name else case.layout
    model = case.spread(layout)
    plain, by_bit = Tally(model), Tally(model, by_bit=True)
    tokens = rows(layout, 5)
    for tally in (plain, by_bit):
        tally.update(tokens, None)
    bits = [row for row in by_bit.by_kind() if row.name.startswith("bit ")]
    assert [row.name for row in bits] == [f"bit {bit}" for bit in range(4)]
    assert sum(row.bits for row in bits) == pytest.approx(plain.total().bits, rel=1e-5)
    if "gpt" in name:  # bit 0 by hand: the odd codes' probability
        with torch.no_grad():
            odd = model.logits(tokens).softmax(dim=-1)[..., 1::2].sum(dim=-1)
        told = torch.where(tokens % 2 == 1, odd, 1 - odd)
        assert bits[0].bits == pytest.approx(float(-told.log2().mean()), rel=1e-4)
        assert bits[0].accuracy == pytest.approx(float((told > 0.5).double().mean()))


def test_codes_that_are_no_bits_are_not_scored_by_bit() -> None:
    with pytest.raises(ValueError, match="codes of 11 are not bits"):
        Tally(by_name("gpt, grid").build(), by_bit=True)


def test_images_are_scored_by_their_codes(lively: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import tokenizers_vq as tvq
    from tokenizers_vq.encoding import BatchEncoder

    encoder = BatchEncoder(lively, device="cpu", precision="fp32")
    model = prior.create(
        "gpt-tiny", encoder.layout, {"kind": "none"}, tokenizer=str(lively), fingerprint=encoder.fingerprint
    ).eval()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "images").mkdir()
    pictures = torch.rand(3, 3, 16, 16) * 2 - 1
    for index, picture in enumerate(pictures):
        tvq.images.to_pil(picture).save(tmp_path / "images" / f"{index}.png")
    arguments = ["score", str(tmp_path / "model"), str(tmp_path / "images"), "--json", "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert not stop.value.code
    found = json.loads(capfd.readouterr().out)
    read = torch.stack([tvq.images.read(tmp_path / "images" / f"{index}.png")[0] for index in range(3)])
    with torch.no_grad():
        nats = -model.log_likelihood(encoder.encode(read)).mean()
    assert found["images"] == 3 and found["exact"] is True
    assert found["bits_per_pixel"] == pytest.approx(float(nats) / math.log(2) / 256, rel=1e-5)
    assert found["bits_per_token"] == pytest.approx(found["bits_per_image"] / 16)
