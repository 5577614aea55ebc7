"""Folders of models: found by name, of the right kind, named so that they are found again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import prior
import tokenizers_vq as tvq
from prior.cli import main as prior_command
from tests.stand_ins import make_prior, make_tokenizer, run_of
from tokenizers_vq import folders
from tokenizers_vq.cli import main as tvq_command


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    tokenizer = make_tokenizer()
    return {
        "tokenizer": run_of(tmp_path / "tokenizer", tokenizer),
        "prior": run_of(tmp_path / "prior", make_prior(tokenizer, str(tmp_path / "tokenizer"))),
    }


def test_a_tokenizer_is_no_prior_and_the_reverse(
    runs: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    swapped = {
        "prior": (tvq.load, "holds a prior, expected a tokenizer: give it to prior.load or `tvq-prior`"),
        "tokenizer": (prior.load, "holds a tokenizer, expected a prior: give it to tokenizers_vq.load or `tvq`"),
    }
    for kind, (load, message) in swapped.items():
        for folder in (runs[kind], runs[kind] / "model"):
            with pytest.raises(ValueError, match=message) as caught:
                load(folder)
            assert "\n" not in str(caught.value) and str(runs[kind]) in str(caught.value)
    photos = ("--data", tmp_path)
    for main, arguments, message in (
        (tvq_command, ("evaluate", runs["prior"]), swapped["prior"][1]),
        (tvq_command, ("evaluate", runs["prior"], *photos), swapped["prior"][1]),
        (tvq_command, ("encode", runs["prior"], tmp_path, "--out", tmp_path / "c"), swapped["prior"][1]),
        (prior_command, ("sample", runs["tokenizer"], "--out", tmp_path / "s"), swapped["tokenizer"][1]),
        (prior_command, ("score", runs["tokenizer"]), swapped["tokenizer"][1]),
        (prior_command, ("sample", runs["prior"], "--tokenizer", runs["prior"], "--out", "s"), swapped["prior"][1]),
    ):
        with pytest.raises(SystemExit):
            main([str(argument) for argument in arguments])
        assert message in capfd.readouterr().err


def test_names_in_vain_are_answered_with_near_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenizers_vq.tokenizer.WEIGHTS", tmp_path / "tokenizers")
    monkeypatch.setattr("prior.model.WEIGHTS", tmp_path / "priors")
    make_tokenizer().save_pretrained(tmp_path / "tokenizers" / "small-16")
    make_prior(make_tokenizer()).save_pretrained(tmp_path / "priors" / "gpt-small-16")
    for load, name, message in (
        (tvq.load, "smal-16", "called 'smal-16'; did you mean 'small-16'?"),
        (prior.load, "gpt-smal-16", "called 'gpt-smal-16'; did you mean 'gpt-small-16'?"),
        (prior.load, "small-16", "'small-16' is a tokenizer, expected a prior"),
        (prior.load, "gpt-tiny", "'gpt-tiny' is a preset without trained weights"),
        (prior.load, tmp_path, "holds no config.json, neither itself nor in model/: it is not a saved prior"),
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            load(name)  # type: ignore[operator]
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_local_folders_are_kept_by_their_place_other_models_by_name(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linked").symlink_to(runs["tokenizer"])
    for given in ("tokenizer", "./tokenizer/", "linked", runs["tokenizer"]):
        assert folders.lasting_name(given) == str(runs["tokenizer"].resolve())
    for given in ("vit-vqgan-tiny-64", "owner/name", "gone/elsewhere"):
        assert folders.lasting_name(given) == given


def test_a_prior_keeps_its_card_and_is_pushed_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads: list[tuple[str, set[str], str]] = []

    class Api:
        def __init__(self, token: str | None = None) -> None: ...

        def create_repo(self, repo_id: str, **options: object) -> Api:
            self.repo_id = repo_id
            return self

        def upload_folder(self, *, repo_id: str, folder_path: Path, **options: object) -> str:
            names = {path.name for path in folder_path.iterdir()}
            uploads.append((repo_id, names, (folder_path / "README.md").read_text()))
            return "https://hub"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    made = make_prior(make_tokenizer(), "/home/somebody/runs/tokenizer")
    made.save_pretrained(tmp_path / "p", card={"data": "codes of cats", "figures": {"bits": 7.25}})
    loaded = prior.Prior.from_pretrained(tmp_path / "p")
    assert loaded.config == made.config and not loaded.training
    assert loaded.push_to_hub("me/prior") == "https://hub"
    loaded.push_to_hub("me/new", model_card_kwargs={"data": "codes of dogs"})
    assert [name for name, *_ in uploads] == ["me/prior", "me/new"]
    assert all(names == {"README.md", "config.json", "model.safetensors"} for _, names, _ in uploads)
    kept, new = (card for *_, card in uploads)
    assert kept == (tmp_path / "p" / "README.md").read_text()
    assert "codes of cats" in kept and "7.25" in kept and "codes of dogs" in new
    assert made.config.fingerprint in kept and "somebody" not in kept


def test_weights_that_are_not_finite_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    """They would give codes that look like any others."""
    folder = tmp_path / "a"
    tokenizer = tvq.load(runs["tokenizer"])
    with torch.no_grad():
        next(tokenizer.parameters()).view(-1)[-1] = float("nan")
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"model.safetensors holds NaN or infinite weights \(encoder"):
        tvq.load(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (3, "named by a text or a path, got 3"),
        (None, "named by a text or a path, got None"),
        ("", "named by a text or a path, got ''"),
        ("x" * 5000, "a name of 5000 letters"),
        (__file__, "is a file, expected a tokenizer's folder"),
    ],
)
def test_what_names_no_model_is_answered_in_one_line(name: object, words: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
        tvq.load(name)  # type: ignore[arg-type]
    assert len(str(error.value)) < 300
    with pytest.raises(ValueError):
        tvq.create(name)  # type: ignore[arg-type]
