"""Every code block of README and the guides runs, page by page, from an empty folder with a few pictures.

The commands are the page's own; trainings get a tiny model and a few steps on top. A block that cannot run says why
in a comment above it: `<!-- not run: REASON -->`; `<!-- may fail: REASON -->` runs and may end with status 1.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import tokenizers_vq as tvq
from tests.conftest import ROOT

DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", DOCS / "index.md", DOCS / "concepts.md", *(DOCS / "guides").glob("*.md")])
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>not run|may fail): (?P<why>.+?) -->\n)?"
    r'^```(?P<kind>\w+)(?: title="(?P<title>.+?)")?\n(?P<body>.*?)^```$',
    re.M | re.S,
)
_NETWORK = "{kind: vqgan, width: 8, multipliers: [1, 2, 2], blocks: 1, attention: [], groups: 4, latent_width: 8}"
_VIT = ["encoder.width=16", "encoder.layers=1", "decoder.width=24", "decoder.layers=1"]
_SNAIL = [f"model.network.{field}" for field in ("layers=1", "residuals=1", "dim=16", "hidden=8", "heads=2")]
_LOOP = ["steps=2", "batch_size=2", "log_every=1", "image_every=0", "precision=fp32"]
TINY = {
    "tvq": ["model.image_size=32", f"model.encoder={_NETWORK}", f"model.decoder={_NETWORK}", *_LOOP, "data.workers=0"],
    "vit-vqgan-tiny-64": [*(f"model.{field}" for field in _VIT), *_LOOP, "data.workers=0"],
    "vqvae2-tiny-64": [
        "model.image_size=32",
        "model.encoder.width=16",
        "model.decoder.width=16",
        *_LOOP,
        "data.workers=0",
    ],
    **{f"pixelsnail-{grid}-tiny": [*_SNAIL, *_LOOP] for grid in ("top", "bottom")},
    "tvq-prior": ["model.network.layers=1", "model.network.dim=16", "model.network.heads=2", *_LOOP],
}


class Block(NamedTuple):
    line: int
    kind: str
    body: str
    mark: str | None
    title: str | None


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        line = text[: match.start("body")].count("\n") + 1
        yield Block(line, match["kind"], match["body"], match["mark"], match["title"])


def commands(body: str) -> Iterator[list[str]]:
    """The commands of a shell block, comments off, lines that end in a backslash joined."""
    for line in body.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photographs of every page: photos/ with captions, photos-test/, cat.jpg."""
    rng = np.random.default_rng(0)
    for name, count in (("photos", 24), ("photos-test", 8)):
        (tmp_path / name).mkdir()
        for index in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
            coarse.resize((72, 64), Image.Resampling.BICUBIC).save(tmp_path / name / f"{index:02}.png")
    captions = [f"{index:02}.png,a picture of {index} things" for index in range(24)]
    (tmp_path / "photos" / "metadata.csv").write_text("\n".join(["file_name,text", *captions]) + "\n")
    coarse.resize((96, 80)).save(tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    train = tvq.train
    monkeypatch.setattr(tvq, "train", lambda *given, **options: train(*given, *TINY["tvq"], **options))
    return tmp_path


def call(words: list[str], may_fail: bool) -> None:
    """Run a command as the shell would, in this process."""
    from prior.cli import main as prior_main
    from tokenizers_vq.cli import main

    program = words[0]
    verbs = {"tvq": main, "tvq-prior": prior_main}
    assert program in verbs, f"no block may call {program}: mark it"
    tiny: list[str] = []
    if words[1] == "train":
        own = [word.partition("=")[0] for word in words[2:] if "=" in word]
        tiny = [word for word in TINY.get(words[2], TINY[program]) if not any(_decides(path, word) for path in own)]
    with pytest.raises(SystemExit) as ended:
        verbs[program]([*words[1:], *tiny])
    assert ended.value.code in ((0, None, 1) if may_fail else (0, None)), " ".join(words)


def _decides(path: str, override: str) -> bool:
    """Whether the page's own `path=...` settles what an override would set."""
    return f"{override.partition('=')[0]}.".startswith(f"{path}.")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_page_runs(page: Path, folder: Path) -> None:
    scope: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        where = f"{page.relative_to(ROOT)}:{block.line}"
        if block.mark == "not run":
            continue
        if block.kind == "python":
            exec(compile("\n" * block.line + block.body, where, "exec"), scope)
        elif block.kind == "bash":
            for words in commands(block.body):
                call(words, block.mark == "may fail")
        else:
            assert block.kind in ("yaml", "text"), f"{where}: no test runs a block of {block.kind}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_not_run_says_why(page: Path) -> None:
    shown = len(re.findall(r"^```\w+.*$", page.read_text(encoding="utf-8"), re.M))
    assert len(list(blocks(page))) == shown


_FIELDS = re.compile(r"^\| field \|.*\n\|[ -|]+\n((?:\|.*\n)+)", re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_of_fields_name_fields_that_are_there(page: Path) -> None:
    from tokenizers_vq.quantizers.vector import VectorQuantizerConfig
    from tokenizers_vq.training.recipe import load_recipe

    for table in _FIELDS.findall(page.read_text(encoding="utf-8")):
        for row in table.splitlines():
            for named in re.findall(r"`(.+?)`", row.split("|")[1]):
                if "=" in named:  # as the command takes it
                    load_recipe("vqgan-tiny-64", ["data=photos/", named])
                else:
                    assert named in VectorQuantizerConfig.model_fields, named
