"""The catalogue of priors holds together; its names load from the cache or the Hub, or say what to fetch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

import prior
from prior.cli import main
from prior.cli.info import outline
from prior.conversion import SOURCES, catalogue
from prior.conversion.classes import class_names
from prior.models import PRESETS
from prior.networks.masked import MaskedSampler
from prior.sampling import Sampler
from tests.prior.published import bert_folder, row_tokenizer
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.config import read_yaml
from tokenizers_vq.conversion import catalogue as tokenizers

ENTRIES = catalogue.entries()


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def test_every_source_has_an_entry_and_every_name_is_there_once() -> None:
    assert set(SOURCES) == {published.source for published in ENTRIES.values()}
    assert prior.list_models("published") == sorted(ENTRIES)
    assert len(ENTRIES) == sum(len(read_yaml(path)["models"]) for path in catalogue.DATA.glob("*.yaml"))
    assert not {*prior.list_models(), *prior.list_models("shipped")} & set(ENTRIES)
    with pytest.raises(ValueError, match="no kind of model 'publishd'; did you mean 'published'"):
        prior.list_models("publishd")


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_the_facts_hold_together(name: str) -> None:
    published = ENTRIES[name]
    assert published.paper.startswith("arXiv ") and name.count("/") == 1
    assert published.tokenizer is None or published.tokenizer in tokenizers.entries()
    assert published.preset is None or (PRESETS / f"{published.preset}.yaml").is_file()
    assert published.hub is None or published.checkpoint is not None
    assert published.sampler is None or published.sampling is not None
    settings = published.sampler or {}
    assert (MaskedSampler if "steps" in settings else Sampler)(**settings)
    if published.hub is None:
        message = catalogue.by_hand(published)
        assert f"`tvq-prior convert {published.source} " in message and "\n" not in message
        assert str(published.page) in message and str(catalogue.converted(name)) in message
    if published.trained:
        assert published.hub is not None or str(published.page).startswith("https://")
    else:
        assert "nobody published weights" in catalogue.by_hand(published)


@pytest.mark.parametrize("name", sorted(name for name, published in ENTRIES.items() if published.preset))
def test_presets_have_the_published_number_of_parameters(name: str) -> None:
    published, empty = ENTRIES[name], outline(ENTRIES[name])
    if empty is None or published.parameters is None:
        assert empty is not None or published.classes is None or published.tokenizer is None
        return
    number, unit, *_ = published.parameters.split(",")[0].split()
    scale = {"million": 1e6, "billion": 1e9}[unit]
    rounding = 0.5 * 10 ** -len(number.partition(".")[2]) * scale
    count = sum(parameter.numel() for parameter in empty.parameters() if parameter.requires_grad)
    if published.source == "rar":  # whose tables hold so many rows that are never read
        count += 2148 * empty.config.network.dim
    assert abs(count - float(number) * scale) <= max(rounding, 0.002 * count)


def test_what_nobody_may_use_or_publishes_is_said() -> None:
    gated = ENTRIES["pixelcnn/gated"]
    assert gated.code_licence == "not stated" and "no licence file" in str(gated.note)
    with pytest.raises(FileNotFoundError, match="nobody published weights of 'pixelcnn/gated': train it with https://"):
        prior.load("pixelcnn/gated")
    with pytest.raises(FileNotFoundError, match=r"'taming/cin' are not on the Hub: fetch https://k00.fr/s511rwcv"):
        prior.load("taming/cin")
    with pytest.raises(FileNotFoundError, match="did you mean 'taming/cin'"):
        prior.load("taming/cim")
    with pytest.raises(ValueError, match="'llamagen/vq-ds16-c2i' is a tokenizer, expected a prior"):
        prior.load("llamagen/vq-ds16-c2i")


@pytest.mark.parametrize(
    ("preset", "length", "parameters"),
    [("titok-maskgit", 32, 177_200_128), ("titok-maskgit", 64, 177_224_704), ("titok-uvit", 128, 294_989_824)],
)
def test_titok_s_generators_have_the_sizes_that_were_published(preset: str, length: int, parameters: int) -> None:
    layout = CodeLayout(((length,),), 1, (4096,))
    with torch.device("meta"):
        made = prior.create(preset, layout, {"kind": "class", "num_classes": 1000})
    assert sum(parameter.numel() for parameter in made.parameters()) == parameters


def test_classes_of_imagenet_have_names_that_tell_them_apart() -> None:
    names = class_names("imagenet-1k")
    assert (names[0], names[1], names[999]) == ("tench", "goldfish", "toilet tissue")
    assert len(set(names)) == 1000 and names[134] == "crane (134)" and names[517] == "crane (517)"


class Hub:
    """A Hub that holds a prior and its tokenizer, and counts downloads."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.held = {"someone/prior": bert_folder(folder / "prior"), "someone/tokenizer": folder / "tokenizer"}
        row_tokenizer().save_pretrained(folder / "tokenizer")

    def snapshot_download(self, repository: str, revision: str | None = None, **options: object) -> str:
        self.asked.append((repository, revision))
        if repository not in self.held:
            raise LocalEntryNotFoundError(f"no {repository}\nin the cache")
        return str(self.held[repository])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    monkeypatch.setattr("tokenizers_vq.folders.snapshot_download", hub.snapshot_download)
    monkeypatch.setenv("TVQ_CACHE", str(tmp_path / "cache"))
    return hub


def publish(monkeypatch: pytest.MonkeyPatch, **fields: object) -> None:
    """The catalogue holds one prior more, `titok/small`."""
    known: dict[str, object] = {
        "source": "maskgit-transformer", "about": "a test", "paper": "arXiv 1", "code": "nowhere", "told": "classes",
        "hub": "someone/prior", "revision": "a1b2", "tokenizer": "someone/tokenizer", "weights": ".",
        "files": ({"name": "config.json"}, {"name": "model.safetensors"}), "weights_licence": "mit",
        "gfid": ({"value": 2.5, "protocol": "a protocol", "said_by": "somebody"},), "sampler": {"steps": 3},
    }  # fmt: skip
    small = catalogue.Published(**{**known, "name": "titok/small", **fields})
    monkeypatch.setattr(catalogue, "entries", lambda: {**ENTRIES, "titok/small": small})


def test_a_published_prior_is_fetched_once_with_its_tokenizer(hub, monkeypatch, tmp_path, capsys) -> None:
    publish(monkeypatch)
    made = prior.load("titok/small")
    assert hub.asked == [("someone/prior", "a1b2"), ("someone/tokenizer", None)]
    tokenizer = row_tokenizer()
    assert made.config.tokenizer == "someone/tokenizer" and made.config.fingerprint == tokenizer.fingerprint
    assert made.layout == tokenizer.code_layout() and not made.training
    folder = catalogue.converted("titok/small")
    assert folder.is_relative_to(tmp_path / "cache") and prior.models.find_model("titok/small") == folder
    assert json.loads((folder / "conversion.json").read_text())["source"] == "maskgit-transformer"
    card = (folder / "README.md").read_text()
    assert "license: mit" in card and "| gFID, a protocol (somebody) | 2.5 |" in card
    prior.load("titok/small")
    assert len(hub.asked) == 2
    assert call("info", "titok/small") == 0
    said = capsys.readouterr().out
    assert (
        "tvq-prior sample titok/small steps=3" in said and str(folder) in said and "told                a class" in said
    )
    assert call("sample", "titok/small", "steps=3", "--count", 2, "--classes", "1", "--out", tmp_path / "a.png") == 0
    assert (tmp_path / "a.png").is_file()


def test_a_prior_of_another_tokenizer_or_a_lost_one_leaves_nothing(hub, monkeypatch, tmp_path) -> None:
    row_tokenizer(tokens=8).save_pretrained(hub.held["someone/tokenizer"])
    publish(monkeypatch)
    with pytest.raises(
        ValueError, match=r"the prior's codes are 4 of 16, those of the tokenizer someone/tokenizer 8 of"
    ):
        prior.load("titok/small")
    publish(monkeypatch, tokenizer="someone/else")
    with pytest.raises(FileNotFoundError, match="Hub repository 'someone/else' cannot be reached"):
        prior.load("titok/small")
    publish(monkeypatch, hub="someone/nobody")
    with pytest.raises(FileNotFoundError, match=r"lies in the Hub repository someone/nobody, which cannot be reached"):
        prior.load("titok/small")
    assert not list((tmp_path / "cache").rglob("*small*"))


def test_info_lists_all_and_knows_folders(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("TVQ_CACHE", str(tmp_path))
    assert call("info") == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[:-1]} == set(ENTRIES)
    assert call("info", "llamagen/c2i-l-384") == 0
    said = capsys.readouterr().out
    assert "gFID                3.07: ImageNet, generated at 384 px, scored at 256 px" in said
    assert "tvq-prior sample llamagen/c2i-l-384 guidance=2.0" in said
    assert "parameters          342,910,976, of the preset gpt-l" in said
    assert call("info", "gpt-tiny-imagenet-64") == 0
    assert "vit-vqgan-tiny-64, fingerprint ce5e90ec" in capsys.readouterr().out
    assert call("info", "titok/l23") == 2
    assert "no folder, shipped or published prior 'titok/l23'; did you mean 'titok/l32'" in capsys.readouterr().err
    assert call("info", "gpt-b") == 2
    assert "is a preset without trained weights" in capsys.readouterr().err
    assert call("models") == 0
    said = capsys.readouterr().out
    assert "  taming/cin* " in said and "  titok/l32 " in said
