"""The catalogue's facts hold together, and its names load: from the cache, the Hub, or with a word on what to fetch."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

import tokenizers_vq as tvq
from tests.conversion.test_taming import tensors_without_middle_attention
from tokenizers_vq import folders, models
from tokenizers_vq.config import ConfigError
from tokenizers_vq.conversion import SOURCES, catalogue, convert
from tokenizers_vq.models import preset_config
from tokenizers_vq.tokenizer import WEIGHTS

ENTRIES = catalogue.entries()


def test_every_family_is_there_once() -> None:
    assert {published.source for published in ENTRIES.values()} == set(SOURCES)
    assert len(ENTRIES) == sum(len(catalogue.read_yaml(path)["models"]) for path in catalogue.DATA.glob("*.yaml"))
    taken = {*tvq.list_models("preset"), *tvq.list_models("shipped")}
    assert not taken & set(ENTRIES) and all(name.count("/") == 1 for name in ENTRIES)
    assert tvq.list_models("published") == sorted(ENTRIES)
    with pytest.raises(ValueError, match="no kind of models 'publishd'; did you mean 'published'"):
        tvq.list_models("publishd")


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_the_facts_hold_together(name: str) -> None:
    published = ENTRIES[name]
    assert published.source in SOURCES and published.paper.startswith("arXiv ")
    assert all(file.url is None or file.url.startswith("https://") for file in published.files)
    assert published.page is None or published.page.startswith("https://")
    assert published.hub is None or (published.hub.count("/") == 1 and published.checkpoint is not None)
    if published.page is not None:
        message = catalogue.by_hand(published)
        assert f"`tvq convert {published.source} " in message and "\n" not in message and published.page in message
    if published.preset is not None:
        with torch.device("meta"):
            tokenizer = preset_config(published.preset).build()
        layout = tokenizer.code_layout(published.image_size, published.image_size)
        assert (layout.grids, layout.levels) == (published.grids, published.levels)
        assert set(layout.sizes) == {published.codes} and {part.dim for part in tokenizer.quantizers} == {published.dim}


def test_wrong_entries_are_refused() -> None:
    fields = {"name": "a/b", "source": "taming", "about": "x", "paper": "arXiv 1", "code": "y"}
    with pytest.raises(ConfigError, match="either the Hub repository or the page"):
        catalogue.Published(**fields)
    with pytest.raises(ConfigError, match="names of its files"):
        catalogue.Published(**fields, hub="a/b")
    with pytest.raises(ConfigError, match="sha256"):
        catalogue.File(name="a", sha256="short")


class Hub:
    """A Hub that holds one repository, `someone/weights`, and counts downloads."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, []  # type: ignore[var-annotated]
        folder.mkdir()
        torch.save({"state_dict": tensors_without_middle_attention()}, folder / "small.ckpt")

    def snapshot_download(self, repository: str, allow_patterns=None, **options) -> str:
        self.asked.append((repository, list(allow_patterns or ())))
        if repository != "someone/weights":
            raise LocalEntryNotFoundError(f"no {repository}\nin the cache")
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "snapshot")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    monkeypatch.setattr("tokenizers_vq.folders.snapshot_download", hub.snapshot_download)
    monkeypatch.setenv("TVQ_CACHE", str(tmp_path / "cache"))
    return hub


def _publish(monkeypatch: pytest.MonkeyPatch, **fields) -> None:
    """The catalogue holds one tokenizer more, `taming/small`."""
    known = {"name": "taming/small", "source": "taming", "about": "a test", "paper": "arXiv 1", "code": "nowhere"}
    files = ({"name": "small.ckpt"},)
    small = catalogue.Published(**{**known, "hub": "someone/weights", "files": files, **fields})
    monkeypatch.setattr(catalogue, "entries", lambda: {**ENTRIES, "taming/small": small})


def test_a_published_name_is_downloaded_and_converted_once(hub, monkeypatch, tmp_path) -> None:
    sha = catalogue.sha256(hub.folder / "small.ckpt")
    _publish(
        monkeypatch,
        files=({"name": "small.ckpt", "sha256": sha},),
        config={"ddconfig": {"resolution": 64}},
        weights_licence="Some Licence",
        rfid=({"value": 1.5, "protocol": "a protocol", "said_by": "somebody"},),
    )
    tokenizer = tvq.load("taming/small")
    assert hub.asked == [("someone/weights", ["small.ckpt"])]
    assert tokenizer.config.image_size == 64 and not tokenizer.training
    assert tokenizer.fingerprint == convert("taming", hub.folder / "small.ckpt").fingerprint
    folder = catalogue.converted("taming/small")
    assert folder.is_relative_to(tmp_path / "cache") and models.find("taming/small") == folder
    assert json.loads((folder / "conversion.json").read_text())["files"] == {"small.ckpt": sha}
    text = (folder / "README.md").read_text()
    assert "Some Licence" in text and "| rFID, a protocol (somebody) | 1.5 |" in text and sha in text
    encoder = tvq.BatchEncoder("taming/small", device="cpu")
    assert encoder.name == "taming/small" and len(hub.asked) == 1
    assert [path.name for path in folder.parent.iterdir()] == ["small"]  # nothing left aside


def test_another_checksum_is_refused(hub, monkeypatch) -> None:
    _publish(monkeypatch, files=({"name": "small.ckpt", "sha256": "0" * 64},))
    with pytest.raises(ValueError, match=r"small.ckpt has sha256 \w{12}, the catalogue says 000000000000: delete") as e:
        tvq.load("taming/small")
    assert "\n" not in str(e.value) and not catalogue.converted("taming/small").exists()


def test_weights_that_do_not_convert_leave_nothing(hub, monkeypatch, tmp_path) -> None:
    _publish(monkeypatch, source="llamagen")
    with pytest.raises(ValueError, match="not a tokenizer of LlamaGen"):
        tvq.load("taming/small")
    assert not list((tmp_path / "cache").rglob("*small*"))


def test_what_the_hub_does_not_give_is_one_line(hub, monkeypatch) -> None:
    _publish(monkeypatch, hub="someone/else")
    with pytest.raises(FileNotFoundError, match=r"someone/else, which cannot be reached .*network") as error:
        tvq.load("taming/small")
    assert "\n" not in str(error.value)
    _publish(monkeypatch, files=({"name": "*.bin"},))
    with pytest.raises(FileNotFoundError, match=r"someone/weights holds 0 files \*.bin"):
        tvq.load("taming/small")


def test_weights_off_the_hub_name_page_and_command(hub, monkeypatch) -> None:
    name = "taming/imagenet-f16-16384"
    with pytest.raises(FileNotFoundError) as error:
        tvq.load(name)
    folder = catalogue.converted(name)
    assert "https://heibox.uni-heidelberg.de/d/a7530b09fed84f80a887/" in str(error.value)
    assert f"`tvq convert taming ckpts/last.ckpt --config configs/model.yaml --out {folder}`" in str(error.value)
    assert not hub.asked
    small = convert("taming", hub.folder / "small.ckpt")
    small.save_pretrained(folder)
    assert tvq.load(name).fingerprint == small.fingerprint


def test_other_names_go_on_as_they_did(hub, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="Hub repository 'someone/unknown' cannot be reached"):
        tvq.load("someone/unknown")
    with pytest.raises(FileNotFoundError, match="did you mean 'taming/imagenet-f16-16384'"):
        tvq.load("taming/imagenet-f16-1638")
    with pytest.raises(ValueError, match="is a preset without trained weights"):
        tvq.load("vqgan-tiny-64")
    assert models.find("vit-vqgan-tiny-64") == WEIGHTS / "vit-vqgan-tiny-64"
    folder = tmp_path / "taming" / "imagenet-f16-1024"  # a folder that bears a published name goes before it
    convert("taming", hub.folder / "small.ckpt").save_pretrained(folder)
    before = Path.cwd()
    try:
        os.chdir(tmp_path)
        assert models.find("taming/imagenet-f16-1024") == Path("taming/imagenet-f16-1024")
    finally:
        os.chdir(before)
    assert folders.local(folder) == folder


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("TVQ_CACHE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    assert catalogue.cache() == tmp_path / "tokenizers-vq"
    monkeypatch.setenv("TVQ_CACHE", str(tmp_path / "mine"))
    assert catalogue.cache() == tmp_path / "mine"
