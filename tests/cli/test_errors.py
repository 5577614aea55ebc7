"""What cannot work is one line on stderr and status 2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tokenizers_vq.cli.common import file_names

CPU = ("--device", "cpu", "--precision", "fp32")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("evaluate", "vqgan-tiny-64", "--data", "{photos}"), "'vqgan-tiny-64' is a preset without trained weights"),
        (("evaluate", "{model}", "--data", "{photos}/none/there"), "no data at"),
        (("evaluate", "{model}"), "is not a run, so its data are not known: give --data PATH"),
        (("evaluate", "{model}", "--data", "{photos}", "--split", "tset"), "no sub-folder for split 'tset'"),
        (("evaluate", "{model}", "--data", "{photos}", "--device", "gpu"), "no device 'gpu'"),
        (("evaluate", "{model}", "--data", "{photos}", "--precision", "fp8"), "no precision 'fp8'"),
        (("evaluate", "{model}", "--data", "{photos}", "--lpips", "vg"), "did you mean 'vgg'?"),
        (("encode", "{model}", "{photos}", "--out", "{tmp}/c", "--on-broken", "jump"), "on_broken"),
        (("train", "vqgan-tiny", "--out", "{tmp}/r"), "no recipe 'vqgan-tiny'; did you mean"),
        (("train", "{tmp}/none.yaml", "--out", "{tmp}/r"), "no config file at"),
        (("decode", "{photos}", "--out", "{tmp}/p"), "holds no codes.json"),
    ],
)
def test_one_line_and_status_2(tvq_command, model, photos, tmp_path, arguments, line) -> None:
    filled = [text.format(model=model, photos=photos, tmp=tmp_path) for text in arguments]
    done = tvq_command(*filled)
    assert done.status == 2
    last = done.err.rstrip().splitlines()[-1]
    assert last.startswith("tvq: ")
    assert line in last
    assert "Traceback" not in done.err


def test_a_near_verb_is_named(tvq_command) -> None:
    done = tvq_command("evalute")
    assert done.status == 2
    assert "evaluate" in done.err


def test_debug_shows_the_traceback(model) -> None:
    from tokenizers_vq.cli import main

    for arguments in (["--debug", "evaluate", str(model)], ["evaluate", str(model), "--debug"]):
        with pytest.raises(ValueError, match="give --data PATH"):
            main(arguments)


def test_a_truncated_model_is_said(tvq_command, model, photos, tmp_path) -> None:
    shutil.copytree(model, tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    done = tvq_command("encode", tmp_path / "m", photos, "--out", tmp_path / "c", *CPU)
    assert done.status == 2
    assert "model.safetensors (1000 bytes) is truncated" in done.err
    assert not (tmp_path / "c").exists()


def test_codes_of_another_tokenizer_are_refused(tvq_command, model, other, photos, tmp_path) -> None:
    assert tvq_command("encode", model, photos, "--out", tmp_path / "c", *CPU).status == 0
    for arguments in (
        ("encode", other, photos, "--out", tmp_path / "c", *CPU),
        ("decode", tmp_path / "c", "--tokenizer", other, "--out", tmp_path / "p", "--device", "cpu"),
    ):
        done = tvq_command(*arguments)
        assert done.status == 2
        assert "holds codes of another tokenizer" in done.err
    assert not (tmp_path / "p").exists()


def test_file_names_are_safe_and_distinct() -> None:
    keys = [
        "a/b.jpg",
        "a_b.png",
        "../../etc/passwd",
        "A/B.png",
        "ünï 画.webp",
        ".png",
        "x" * 300,
        "no:where?",
        "1.5/v.2",
    ]
    names = file_names(keys)
    assert names[:3] == ["a_b.png", "a_b-2.png", "_.._etc_passwd.png"]
    assert names[4] == "ünï 画.png"
    assert len({name.casefold() for name in names}) == len(keys)
    assert all("/" not in name and len(name.encode()) < 255 and not name.startswith(".") for name in names)


def test_one_of_several_processes_leaves_with_its_code(tmp_path: Path) -> None:
    """At once, when torch is there; the exit code is what a launcher looks at."""
    for world in ("", "2"):
        environment = {**os.environ, "WORLD_SIZE": world, "RANK": "0"}
        command = [sys.executable, "-m", "tokenizers_vq", "info"]
        for name, code in (("vit-vqgan-tiny-64", 0), (str(tmp_path / "absent"), 2)):
            done = subprocess.run([*command, name], env=environment, capture_output=True, text=True, timeout=120)
            assert done.returncode == code, done.stderr
            assert done.stdout if not code else done.stderr.count("\n") == 1
