"""What strangers wrote reaches the terminal as text: one line, without a byte that the terminal would obey."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

TRAIN = ("train", "vqvae-tiny-64", "--out", "{tmp}/r", "data=skimage")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((*TRAIN, "model=3"), "model"),
        ((*TRAIN, "optimizer.lr=-0.1"), "optimizer.lr: must not be negative, got -0.1"),
        ((*TRAIN, "optimizer.lr={{kind: linear, begin: 0, end: -1, over: [0, 1]}}"), "must not be negative, got -1"),
        ((*TRAIN, "optimizer.betas=[1, 1]"), "optimizer.betas.0: input should be less than 1, got 1"),
        ((*TRAIN, "optimizer.weight_decay=-1"), "optimizer.weight_decay: input should be greater than or equal to 0"),
        ((*TRAIN, "data.workers=100000"), "data.workers: must be from 0 to 1024, got 100000"),
        ((*TRAIN, "data.ratio=[1, .inf]"), "data.ratio.1: input should be a finite number, got inf"),
        ((*TRAIN, "losses.0.weight=-1"), "weight: must not be negative, got -1"),
        ((*TRAIN, "optimizer.lr=.inf"), "optimizer.lr: input should be a finite number"),
        ((*TRAIN, "data.range=[0, .inf]"), "data.range.1: input should be a finite number"),
        (
            (*TRAIN, "model.encoder.width=1000000000"),
            "model.encoder.width: input should be less than or equal",
        ),
        (
            (*TRAIN, "model.encoder.blocks=1000000000"),
            "model.encoder.blocks: input should be less than or equal",
        ),
        (("train", "{tmp}/keys.yaml", "--out", "{tmp}/r"), "keys.yaml: line 2, column 3: the key '1' is not text"),
        (("train", "{tmp}/alias.yaml", "--out", "{tmp}/r"), "alias.yaml: line 1, column 8: nested more than 64 levels"),
        (("convert", "taming", "{tmp}/named.pt", "--out", "{tmp}/c"), r"no proper name, 'a\x1b[31m'"),
        (("info", "{tmp}/m"), r"unknown kind '\x1b[31mred'"),
    ],
)
def test_one_line_of_plain_text(tvq_command, model, tmp_path, arguments, line) -> None:
    (tmp_path / "keys.yaml").write_text("data:\n  1: x\n")
    (tmp_path / "alias.yaml").write_text("model: &a [*a]\n")
    torch.save({"a\x1b[31m": torch.ones(1)}, tmp_path / "named.pt")
    shutil.copytree(model, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["quantizer"]["kind"] = "\x1b[31mred"
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    done = tvq_command(*(text.format(tmp=tmp_path) for text in arguments))
    assert done.status == 2
    assert line in done.err.rstrip().splitlines()[-1]
    assert "Traceback" not in done.err and "\x1b" not in done.err + done.out


def test_a_card_is_text(tvq_command, model, tmp_path) -> None:
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m" / "README.md").write_bytes(b"**Training data:** \x1b]0;owned\x07 photographs \xff\n")
    done = tvq_command("info", str(tmp_path / "m"))
    assert done.status == 0
    assert r"\x1b]0;owned\x07 photographs" in done.out and "\x1b" not in done.out
