"""What goes where: results on stdout, as text or JSON, notes on stderr and none with `--quiet`; shell completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import tokenizers_vq as tvq
from tests.conftest import ROOT

QUICK = ("--backbone", "none", "--lpips", "none", "--device", "cpu", "--precision", "fp32")


def strict(text: str):
    """JSON on one line, without the NaN and Infinity that Python alone reads."""
    assert text.count("\n") == 1

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def test_results_as_json(tvq_command, model, photos, tmp_path) -> None:
    said = tvq_command("evaluate", model, "--data", photos, "--json", "--out", tmp_path / "e.json", *QUICK)
    found = strict(said.out)
    assert said.status == 0 and found == json.loads((tmp_path / "e.json").read_text())
    assert found["metrics"]["psnr"]["value"] > 0 and found["data"]["images"] == 2
    assert "skipped test/4.png" in said.err

    found = strict(tvq_command("report", model, "--data", photos, "--out", tmp_path / "r", "--json", *QUICK).out)
    assert found["page"] == str(tmp_path / "r" / "report.html") and found["metrics"]["psnr"]["value"] > 0
    options = ("--size", 32, "--codecs", "none", "--json")
    found = strict(tvq_command("compare", model, "--data", photos, "--out", tmp_path / "c", *options, *QUICK).out)
    assert found["page"] == str(tmp_path / "c" / "compare.html")
    assert [row["name"] for row in found["rows"]] == [model.name]

    computing = ("--device", "cpu", "--precision", "fp32")
    found = strict(tvq_command("encode", model, photos / "test", "--out", tmp_path / "codes", "--json", *computing).out)
    assert (found["images"], found["shards"], list(found["broken"])) == (2, 1, ["4.png"])
    assert found["fingerprint"] == tvq.load(model).fingerprint and found["out"] == str(tmp_path / "codes")


def test_what_there_is_as_json(tvq_command, model) -> None:
    found = strict(tvq_command("models", "--json").out)
    assert {kind: sorted(names) for kind, names in found.items()} == {
        kind: tvq.list_models(kind) for kind in ("preset", "shipped", "published")
    }
    found = strict(tvq_command("recipes", "--json").out)
    assert sorted(found) == tvq.list_recipes() and all(found.values())
    assert strict(tvq_command("recipes", "vqgan-tiny-64", "--json").out)["model"]["kind"] == "flat"
    found, tok = strict(tvq_command("info", model, "--json").out), tvq.load(model)
    assert found["codes"] == tok.code_layout().to_dict() and found["fingerprint"] == tok.fingerprint
    assert found["images"] == {"height": 32, "width": 32, "channels": 3}
    published = strict(tvq_command("info", "taming/imagenet-f16-16384", "--json").out)
    assert published["name"] == "taming/imagenet-f16-16384" and len(published["file"]) == 2


def test_numbers_that_json_does_not_have_are_null(capsys) -> None:
    from tokenizers_vq.cli.common import print_json

    print_json({"a": [float("nan"), 1.5, (float("-inf"),)], "b": True})
    assert strict(capsys.readouterr().out) == {"a": [None, 1.5, [None]], "b": True}


@pytest.mark.parametrize("first", [True, False])
def test_quiet_leaves_results_and_errors(tvq_command, model, photos, tmp_path, first) -> None:
    verb = ("encode", model, photos, "--split", "train", "--device", "cpu")
    given = ("--quiet", *verb) if first else (*verb, "--quiet")
    said = tvq_command(*given, "--out", tmp_path / "codes")
    assert (said.status, said.err) == (0, "") and said.out.startswith("3 images in 1 shards")
    said = tvq_command(*given, "--out", tmp_path / "codes", "--views", "flip")
    assert said.status == 2 and said.err.startswith("tvq: ") and said.err.count("\n") == 1
    small = ["encoder.width=8", "decoder.width=8", "image_size=32"]
    run = [f"data={photos}", "steps=1", "batch_size=1", "data.workers=0", "image_every=0", "adversary=null"]
    words = ["train", "vqvae-tiny-64", *run, *(f"model.{one}" for one in small), "--out", tmp_path / "run"]
    said = tvq_command(*words, "--device", "cpu", *(["--quiet"] if first else []))
    assert said.status == 0, said.err
    if first:
        assert said[1:] == ("", "")
    else:
        assert said.out.startswith("step 1/1 ") and "training on cpu" in said.err


def test_the_log_is_left_as_it_was(tvq_command, model) -> None:
    import logging

    before = [(name, list(logging.getLogger(name).handlers), logging.getLogger(name).level) for name in ("", "prior")]
    ours = logging.getLogger("tokenizers_vq")
    handlers, level = list(ours.handlers), ours.level
    assert tvq_command("info", model).status == 0
    assert (ours.handlers, ours.level) == (handlers, level)
    assert before == [
        (name, list(logging.getLogger(name).handlers), logging.getLogger(name).level) for name in ("", "prior")
    ]


@pytest.mark.parametrize(("module", "name"), [("tokenizers_vq", "TVQ"), ("prior", "TVQ_PRIOR")])
def test_a_shell_completes_verbs(module, name) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), f"_{name}_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    environment["COMP_WORDS"] = f"{name.lower().replace('_', '-')} ev"
    script = f"from {module}.cli import main; main([])"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["evaluate"], done.stderr


def test_every_status_stands_in_the_table() -> None:
    """`typer.Exit` of the verbs is 1 or 128 + a signal; doctor and ablate alone end with 1."""
    import re

    table = (ROOT / "docs" / "hooks.py").read_text(encoding="utf-8")
    for package in ("tokenizers_vq", "prior"):
        for path in sorted((ROOT / package / "cli").glob("*.py")):
            for status in re.findall(r"typer\.Exit\((.*)\)", path.read_text(encoding="utf-8")):
                assert status == "128 + stop.signal" or (status == "1" and f"`tvq {path.stem}`" in table), path
