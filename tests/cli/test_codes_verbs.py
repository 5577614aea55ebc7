"""`tvq encode` says what it reads and mends what is damaged; `tvq decode` names it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenizers_vq.data.shards import read_codes, shard_name

CPU = ("--device", "cpu", "--precision", "fp32")
SHARD = shard_name(0, 1)


def _one_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("tvq: ")]
    assert len(lines) == 1 and "Traceback" not in text
    return lines[0]


def test_encode_says_what_it_reads_and_mends_what_is_damaged(tvq_command, model, photos, tmp_path) -> None:
    codes = tmp_path / "codes"
    command = ("encode", model, photos, "--split", "test", "--out", codes, *CPU)
    done = tvq_command(*command)
    assert done.status == 0
    info = json.loads((codes / "codes.json").read_text())
    assert (info["split"], info["found"], info["images"]) == ("test", 3, 2)
    assert f"reading {info['source']}" in done.err and info["folder"] in done.err and "3 images" in done.err
    before = read_codes(codes).codes.tolist()

    table = pq.read_table(codes / SHARD)
    nulls = pa.array([None, *table["codes"].to_pylist()[1:]], table.schema.field("codes").type)
    for damage in (
        lambda: pq.write_table(table.set_column(0, "codes", nulls), codes / SHARD),
        lambda: (codes / SHARD).write_bytes((codes / SHARD).read_bytes()[:-20]),
        lambda: (codes / "codes.json").write_text('{"shards": 1000000000}'),
        lambda: (codes / "codes.json").write_text("[" * 100_000),
        lambda: [path.write_bytes(b"") for path in codes.iterdir()],
    ):
        damage()
        refused = tvq_command("decode", codes, "--out", tmp_path / "png", *CPU)
        assert refused.status == 2
        assert str(codes) in _one_line(refused.err) and "encode again" in refused.err
        again = tvq_command(*command)
        assert again.status == 0 and (SHARD in again.err or "codes.json is written again" in again.err)
        assert read_codes(codes).codes.tolist() == before
        assert json.loads((codes / "codes.json").read_text()) == info
    assert tvq_command("decode", codes, "--out", tmp_path / "png", *CPU).status == 0
    assert len(list((tmp_path / "png").iterdir())) == 2


def test_no_image_that_can_be_read_is_no_success(tvq_command, model, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "d").mkdir(exist_ok=True)
        (tmp_path / "d" / f"{number}.png").write_bytes(b"no picture")
    done = tvq_command("encode", model, tmp_path / "d", "--out", tmp_path / "codes", *CPU)
    assert done.status == 2
    assert "no image can be read" in _one_line(done.err) or "none of its 3 images" in _one_line(done.err)


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tvq_command, model, photos, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    command = ("encode", model, photos, "--split", "train", "--out", tmp_path / "codes", *CPU)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2500, limits[1]))
        full = tvq_command(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert full.status == 2
    assert "cannot be written" in _one_line(full.err) and str(tmp_path / "codes") in _one_line(full.err)
    assert not list((tmp_path / "codes").glob(".*")) and not list((tmp_path / "codes").glob("*.parquet"))
    assert tvq_command(*command).status == 0
    assert len(read_codes(tmp_path / "codes")) > 0


@pytest.mark.parametrize("column, problem", [("label", "rows without a 'label'"), ("key", "rows without a 'key'")])
def test_decode_names_the_column(column: str, problem: str, tvq_command, model, photos, tmp_path: Path) -> None:
    codes = tmp_path / "codes"
    tvq_command("encode", model, photos, "--split", "test", "--out", codes, *CPU)
    table = pq.read_table(codes / SHARD)
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, column, pa.nulls(len(table), table.schema.field(place).type)), codes / SHARD)
    refused = tvq_command("decode", codes, "--out", tmp_path / "png", *CPU)
    assert refused.status == 2 and problem in _one_line(refused.err) and SHARD in refused.err
    assert not (tmp_path / "png").exists()
