"""The `tvq-prior` command: the road from codes to images, and what it says when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

import prior
from prior.cli import main
from tests.prior.conftest import SMALL


class Result(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def command(capfd) -> Callable[..., Result]:
    """Runs `tvq-prior` with arguments; status, stdout and stderr."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Result(int(stop.value.code or 0), out, err)

    return run


@pytest.fixture(scope="session")
def trained(codes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps."""
    out = tmp_path_factory.mktemp("runs") / "p"
    with pytest.raises(SystemExit) as stop:
        main(["train", "gpt-tiny", str(codes), *SMALL, "steps=20", "--out", str(out), "--device", "cpu"])
    assert not stop.value.code
    return out


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_sampling_follows_the_seed(trained: Path, command, tmp_path: Path) -> None:
    first = command("sample", trained, "--out", tmp_path / "a", "--grid", "2x3", "--device", "cpu", "--codes")
    assert first.status == 0 and str(tmp_path / "a" / "grid.png") in first.out
    assert command("sample", trained, "--out", tmp_path / "b", "--count", "6", "--device", "cpu").status == 0
    assert command("sample", trained, "--out", tmp_path / "c", "--grid", "2x3", "--seed", "1").status == 0
    a, b, c = (pictures(tmp_path / name) for name in "abc")
    assert sorted(a) == [*(f"{i:05d}.png" for i in range(6)), "grid.png"]
    numbered = sorted(a)[:-1]
    assert [a[name] for name in numbered] == [b[name] for name in numbered]
    assert all(a[name] != c[name] for name in numbered)
    with Image.open(tmp_path / "a" / "grid.png") as grid:
        assert grid.size == (3 * 18 + 2, 2 * 18 + 2)
    told = json.loads((tmp_path / "a" / "samples.json").read_text())
    assert [entry["class"] for entry in told["images"]] == [0, 0, 1, 1, 2, 2]
    assert [entry["name"] for entry in told["images"]] == ["cat", "cat", "dog", "dog", "fox", "fox"]
    assert told["sampler"]["seed"] == 0 and told["fingerprint"] == prior.load(trained).config.fingerprint
    assert all(len(entry["codes"]) == 16 and max(entry["codes"]) < 16 for entry in told["images"])
    assert "codes" not in json.loads((tmp_path / "b" / "samples.json").read_text())["images"][0]


def test_guidance_temperature_and_filters_change_the_images(trained: Path, command, tmp_path: Path) -> None:
    settings = {
        "plain": (),
        "guided": ("--guidance", "6"),
        "cold": ("--temperature", "0"),
        "k": ("--top-k", "1"),
        "p": ("--top-p", "0.3"),
    }
    found = {}
    for name, options in settings.items():
        arguments = ("--count", 4, "--classes", "dog,2", *options, "--device", "cpu")
        assert command("sample", trained, "--out", tmp_path / name, *arguments).status == 0
        found[name] = pictures(tmp_path / name)
    told = json.loads((tmp_path / "k" / "samples.json").read_text())
    assert [entry["class"] for entry in told["images"]] == [1, 1, 2, 2]
    assert found["cold"] == found["k"]  # both take the likeliest code
    for name in ("guided", "cold", "p"):
        assert found[name] != found["plain"]


def test_score(trained: Path, codes: Path, write_codes, command, tmp_path: Path) -> None:
    own = command("score", trained, "--out", tmp_path / "own.json", "--device", "cpu")
    assert own.status == 0 and "Unigram" in own.out and "held-out codes of 12 images" in own.out
    same = command("score", trained, codes, "--out", tmp_path / "same.json", "--device", "cpu")
    assert same.status == 0
    results = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("own", "same")]
    assert results[0]["bits_per_token"] == results[1]["bits_per_token"]
    assert results[0]["bits_per_image"] == pytest.approx(16 * results[0]["bits_per_token"])
    more = write_codes(tmp_path / "more", 20, seed=5)
    assert "held-out codes of 20 images" in command("score", trained, more, "--device", "cpu").out
    saved = command("score", trained / "model", more, "--device", "cpu")
    assert saved.status == 0 and "Unigram" not in saved.out and "Entropy" in saved.out


def test_models_and_help(command) -> None:
    listed = command("models")
    assert listed.status == 0 and all(name in listed.out for name in prior.list_models())
    assert command("--help").status == 0
    told = command("fields", "sampler")
    assert told.status == 0 and told.out.count("top_p") == 1
    assert "sampler of gpt, rq, pixelcnn, pixelsnail: How codes are drawn one after the" in told.out
    assert (
        command("fields", "sampler.stepps").err == "tvq-prior: sampler.stepps: no such field; did you mean 'steps'?\n"
    )
    assert command("fields", "sampler.order").out.startswith("sampler of maskgit, maskbit, uvit: How masked codes are")
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, prior.cli; print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert loaded.stdout.strip() == "False"


def test_errors_are_one_line(
    trained: Path, codes: Path, write_codes, tokenizer: Path, other_tokenizer: Path, command, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "out")
    other = write_codes(tmp_path / "other", 20, fingerprint="e" * 64, tokenizer=None)
    bare = write_codes(tmp_path / "bare", 20, label_names=None, tokenizer=None)
    nameless = tmp_path / "nameless"
    assert command("train", "gpt-tiny", bare, *SMALL, "steps=1", "--out", nameless, "--device", "cpu").status == 0
    free = tmp_path / "free"
    free_of = ("model.condition=none", "steps=1", "--out", free, "--device", "cpu")
    assert command("train", "gpt-tiny", codes, *SMALL, *free_of).status == 0
    cases: dict[tuple[object, ...], str] = {
        ("train", "gpt-tinny", codes, *out): "did you mean 'gpt-tiny'?",
        ("train", "gpt-tiny", codes, "stepps=3", *out): "stepps: no such field; did you mean 'steps'?",
        ("train", "gpt-tiny", tmp_path / "none", *out): "`tvq encode` makes one",
        ("train", "gpt-tiny", other, *SMALL, "--out", trained): "holds codes of another tokenizer (eeeeeeee)",
        ("train", "gpt-tiny", codes, *SMALL, *out, "--tokenizer", other_tokenizer): "give its own with --tokenizer",
        ("train", "gpt-tiny", codes, *SMALL, "steps=20", "seed=4", "--out", trained): "which differs in seed",
        ("sample", tmp_path / "none", *out): "no folder, shipped prior or Hub repository",
        ("sample", trained, *out, "--grid", "4*8"): "--grid: '4*8' is not of the form ROWSxCOLUMNS",
        ("sample", trained, *out, "--classes", "dgo"): "no class called 'dgo'; did you mean 'dog'?",
        ("sample", trained, *out, "--classes", "3"): "no class 3; they are 0 to 2",
        ("sample", trained, *out, "--tokenizer", other_tokenizer): "is of another tokenizer",
        ("sample", trained, *out, "--top-p", "2"): "top_p: input should be less than or equal to 1",
        ("sample", trained, *out, "--device", "tpu"): "no device 'tpu'",
        ("sample", nameless, *out): "does not say which tokenizer made its codes",
        ("sample", nameless, *out, "--tokenizer", tokenizer, "--classes", "cat"): "this prior knows numbers alone",
        ("sample", free, *out, "--classes", "0"): "--class: this prior is told no class; it is told nothing",
        ("sample", free, *out, "--guidance", "2"): "guidance 2 needs a condition",
        ("score", trained, other): "another tokenizer",
        ("score", trained / "model"): "name a folder of codes",
    }
    for arguments, says in cases.items():
        result = command(*arguments)
        assert result.status == 2, (arguments, result)
        assert says in result.err, (arguments, result.err)
        line = result.err.strip().splitlines()[-1]
        assert line.startswith("tvq-prior: ") and says in line
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError):
        main(["sample", str(tmp_path / "none"), "--out", "x", "--debug"])


def test_a_grid_is_drawn_in_a_process_that_imported_nothing_else() -> None:
    code = "import torch; from prior.decoding import grid; grid(torch.zeros(4, 3, 8, 8), 2)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_maskgit_is_trained_and_sampled(codes: Path, command, tmp_path: Path) -> None:
    small = [*(field for field in SMALL if not field.startswith("model.")), "image_every=3"]
    network = "model.network={kind: maskgit, layers: 1, dim: 16, heads: 2}"
    out = tmp_path / "run"
    trained = command("train", "maskgit-tiny", codes, *small, network, "--out", out, "--device", "cpu")
    assert trained.status == 0 and "held-out codes of 12 images: at most" in trained.out
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert "loss/bits" in logged[-1] and "bits_per_token" not in logged[-1]
    drawn = ("--count", 2, "--codes", "--device", "cpu")
    for name, fields in (("a", ()), ("b", ("steps=3", "order=halton")), ("c", ("--guidance", 2, "steps=3"))):
        assert command("sample", out, *fields, "--out", tmp_path / name, *drawn).status == 0
    told = [json.loads((tmp_path / name / "samples.json").read_text()) for name in "abc"]
    assert [one["sampler"]["steps"] for one in told] == [8, 3, 3] and told[1]["sampler"]["order"] == "halton"
    assert len({str(one["images"]) for one in told}) == 3
    evaluated = command("score", out, "--device", "cpu", "--out", tmp_path / "e.json")
    assert "at most: a bound" in " ".join(evaluated.out.split())
    assert json.loads((tmp_path / "e.json").read_text())["exact"] is False
    wrong = command("sample", out, "stepps=3", "--out", tmp_path / "d", *drawn)
    assert wrong.status == 2 and "stepps: no such field; did you mean 'steps'?" in wrong.err
