"""Every verb on small data: what it prints and writes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml
from PIL import Image

import tokenizers_vq as tvq
from tests.conftest import shared
from tokenizers_vq.data.shards import read_codes
from tokenizers_vq.training.recipe import list_recipes

CPU = ("--device", "cpu", "--precision", "fp32")


def test_help_needs_no_torch() -> None:
    script = (
        "import sys\nfrom tokenizers_vq.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as stop: status = stop.code\n"
        "heavy = {'torch', 'datasets', 'PIL', 'timm', 'pydantic'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}, status {status}' if heavy or status else 0)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for verb in ("models", "recipes", "train", "evaluate", "reconstruct", "encode", "decode", "report"):
        assert verb in run.stdout


def test_models_and_recipes_list_every_name(tvq_command) -> None:
    listed = tvq_command("models")
    assert listed.status == 0
    words = [line.split() for line in listed.out.splitlines()]
    for name in [*tvq.list_models("preset"), *tvq.list_models("shipped")]:
        assert any(line and line[0] == name and len(line) > 2 for line in words)
    listed = tvq_command("recipes")
    assert listed.status == 0
    assert all(name in listed.out for name in list_recipes())


def test_encode_then_decode(tvq_command, model, photos, tmp_path) -> None:
    codes = tmp_path / "codes"
    done = tvq_command("encode", model, photos / "test", "--out", codes, *CPU)
    assert done.status == 0
    assert f"2 images in 1 shards, 1 skipped: {codes}" in done.out
    assert "skipped 4.png: not a picture" in done.err
    assert "on cpu, fp32" in done.err
    shards = read_codes(codes)
    assert shards.keys == ["3.png", "5.png"]
    assert shards.info["precision"] == "fp32"

    done = tvq_command("decode", codes, "--out", tmp_path / "png", "--device", "cpu", "--precision", "fp32")
    assert done.status == 0
    assert sorted(path.name for path in (tmp_path / "png").iterdir()) == ["3.png", "5.png"]
    tokenizer = tvq.load(model)
    wanted = tvq.images.to_uint8(tokenizer.decode(tokenizer.code_layout().unflatten(shards[[1]])))
    with Image.open(tmp_path / "png" / "5.png") as picture:
        got = tvq.images.to_uint8(tvq.images.read(picture))
    assert (got.int() - wanted.int()).abs().max() <= 1


def test_auto_precision_stays_what_it_was(tvq_command, model, photos, tmp_path) -> None:
    arguments = ("encode", model, photos, "--split", "train", "--out", tmp_path / "codes", "--device", "cpu")
    assert "bf16" in tvq_command(*arguments, "--precision", "bf16").err
    (tmp_path / "codes" / "codes-00000-of-00001.parquet").unlink()
    assert "bf16" in tvq_command(*arguments).err
    refused = tvq_command(*arguments, "--precision", "fp32")
    assert refused.status == 2
    assert "precision = bf16, now fp32" in refused.err


def test_the_mixed_folder_encodes_its_good_files_and_names_the_others(tvq_command, model, tmp_path) -> None:
    folder = shared("data/mixed-folder")
    done = tvq_command("encode", model, folder, "--out", tmp_path / "codes", *CPU)
    assert done.status == 0
    assert "33 images in 1 shards, 3 skipped" in done.out
    skipped = sorted(line.split()[1] for line in done.err.splitlines() if line.startswith("skipped"))
    assert skipped == ["empty.png:", "text.jpg:", "truncated.jpg:"]
    assert len(set(read_codes(tmp_path / "codes").keys)) == 33
    assert sorted(path.name for path in (tmp_path / "codes").iterdir()) == [
        "codes-00000-of-00001.parquet",
        "codes.json",
    ]
    stopped = tvq_command("encode", model, folder, "--out", tmp_path / "stop", "--on-broken", "stop", *CPU)
    assert stopped.status == 2
    assert "not a readable image" in stopped.err


def test_evaluate_prints_and_writes(tvq_command, model, photos, tmp_path) -> None:
    out = tmp_path / "e.json"
    done = tvq_command("evaluate", model, "--data", photos, "--out", out, "--backbone", "none", "--lpips", "none", *CPU)
    assert done.status == 0
    assert "PSNR" in done.out
    result = json.loads(out.read_text())
    assert result["data"]["images"] == 2  # the test split
    assert result["data"]["name"] == str(photos)
    assert result["speed"]["precision"] == "float32"


def test_evaluate_knows_a_runs_test_split(tvq_command, photos, tmp_path) -> None:
    run = tmp_path / "run"
    tvq.create("vqvae-tiny-64", ["encoder.width=16", "decoder.width=16"]).save_pretrained(run / "model")
    data = {"path": str(photos), "split": "train", "limit": 1, "crop": "center"}
    (run / "recipe.yaml").write_text(yaml.safe_dump({"data": data}))
    arguments = ("evaluate", run, "--backbone", "none", "--lpips", "none", "--out", tmp_path / "e.json", *CPU)
    assert tvq_command(*arguments).status == 0
    result = json.loads((tmp_path / "e.json").read_text())
    assert (result["data"]["split"], result["data"]["images"]) == ("test", 2)

    data["path"] = str(photos / "train")
    (run / "recipe.yaml").write_text(yaml.safe_dump({"data": {**data, "split": None}}))
    refused = tvq_command(*arguments)
    assert refused.status == 2
    assert "has no test split: give --data PATH or --split NAME" in refused.err


def test_report_and_reconstruct(tvq_command, model, photos, tmp_path) -> None:
    options = ("--data", photos / "train", *CPU)
    done = tvq_command("report", model, "--out", tmp_path / "r", "--backbone", "none", "--lpips", "none", *options)
    assert done.status == 0, done.err
    assert str(tmp_path / "r" / "report.html") in done.out
    assert (tmp_path / "r" / "report.html").is_file()
    done = tvq_command("reconstruct", model, "--out", tmp_path / "p", "--count", 2, *options)
    assert done.status == 0, done.err
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["0.png", "1.png", "grid.png"]
    with Image.open(tmp_path / "p" / "0.png") as picture:
        assert picture.size == (64, 32)


@pytest.mark.parametrize("interrupted", [None, 15])
def test_train_hands_over_to_the_run(tvq_command, tmp_path, monkeypatch, photos, interrupted) -> None:
    from tokenizers_vq.training import loop, runs

    seen = {}

    def train(recipe, out, *, device, init_from):
        seen.update(data=recipe.data.path, steps=recipe.steps, out=out, device=device, init_from=init_from)
        if interrupted:
            raise loop.Interrupted(interrupted, 3)
        return recipe.steps

    monkeypatch.setattr(runs, "train", train)
    done = tvq_command(
        "train", list_recipes()[0], f"data={photos}", "steps=7", "--out", tmp_path / "r", "--device", "cpu"
    )
    assert seen == {"data": str(photos), "steps": 7, "out": tmp_path / "r", "device": "cpu", "init_from": None}
    assert done.status == (128 + 15 if interrupted else 0)
    if interrupted:
        assert "saved at step 3" in done.err


def test_labels_that_nothing_asks_for_stop_no_evaluation(tvq_command, model, photos, tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    picture = next(photos.rglob("*.png")).read_bytes()
    pq.write_table(pa.table({"image": [picture] * 2, "label": [0, None]}), tmp_path / "a.parquet")
    quick = ("--backbone", "none", "--lpips", "none", *CPU)
    done = tvq_command("evaluate", model, "--data", tmp_path / "a.parquet", *quick)
    assert done.status == 0 and "reading 2 images of" in done.err
    refused = tvq_command("encode", model, tmp_path / "a.parquet", "--out", tmp_path / "codes", *CPU)
    assert refused.status == 2 and "a.parquet: row 1 of column 'label' holds null" in refused.err
