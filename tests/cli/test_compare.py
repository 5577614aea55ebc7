"""`tvq compare`: what it writes, and what it refuses before anything runs."""

from __future__ import annotations

import json

import pytest

from tokenizers_vq.verbs.compare import short_names as names

QUICK = ("--device", "cpu", "--precision", "fp32", "--backbone", "none", "--lpips", "none")


def test_two_models_and_chosen_codecs(tvq_command, model, other, photos, tmp_path) -> None:
    options = ("--data", photos, "--size", 64, "--codecs", "jpeg,webp", "--jpeg", "30,5", "--webp", "1", *QUICK)
    done = tvq_command("compare", model, other, "--out", tmp_path / "c", *options)
    assert done.status == 0, done.err
    assert done.out.splitlines()[-1] == str(tmp_path / "c" / "compare.html")
    assert "skipped test/4.png: not a picture" in done.err
    record = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert [row["name"] for row in record["rows"]] == ["a", "b", "JPEG 5", "JPEG 30", "WebP 1"]
    assert record["data"]["image_size"] == [64, 64] and record["data"]["images"] == 2
    assert all(row["name"] in done.out for row in record["rows"])
    assert (tmp_path / "c" / "rate-distortion.png").is_file() and (tmp_path / "c" / "table.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("{model}", "{model}", "--size", "258"), "cannot take images of 258x258"),
        (("{model}", "--codecs", "jepg"), "--codecs: no codec 'jepg'; did you mean 'jpeg'?"),
        (("{model}", "--jpeg", "5,x"), "--jpeg: 'x' is not a quality"),
        (("{model}", "--jpeg", "0"), "JPEG has no quality 0"),
        (("{model}", "--codecs", "none", "--avif", "5"), "--avif: --codecs none leaves it out"),
        (("vqgan-tiny-64",), "is a preset without trained weights"),
    ],
)
def test_refusals_are_one_line(tvq_command, model, photos, tmp_path, arguments, line) -> None:
    filled = [text.format(model=model) for text in arguments]
    done = tvq_command("compare", *filled, "--data", photos, "--out", tmp_path / "c", *QUICK)
    assert done.status == 2
    last = done.err.rstrip().splitlines()[-1]
    assert last.startswith("tvq: ") and line in last
    assert "Traceback" not in done.err and not (tmp_path / "c").exists()


def test_names_are_short_and_distinct() -> None:
    assert names(["runs/a", "runs/b/model", "vit"]) == ["a", "b", "vit"]
    assert names(["x/a", "y/a", "x/a"]) == ["x/a", "y/a", "x/a (2)"]
