"""The pages that add a part are followed word for word in a copy of the packages: files, edits, commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.test_pages import DOCS, blocks, commands, folder

__all__ = ["folder"]  # a fixture

PAGES = sorted((DOCS / "extend").glob("*.md"))
_FOLLOW = """
import sys
import pytest
from tests.docs.test_pages import call
for words in {commands!r}:
    if words[0] == "pytest":
        at = {tree!r} + "/" + words[1]
        status = pytest.main(["--rootdir", {tree!r}, "-p", "no:cacheprovider", "-qx", at, *words[2:]])
        assert status == 0, words
    else:
        call(words, False)
"""


def edit(tree: Path, diff: str) -> None:
    """Apply a diff whose hunks are found by their lines, which stand once in the file."""
    header, *hunks = re.split(r"^@@.*\n", diff, flags=re.M)
    path = tree / header.splitlines()[1].removeprefix("+++ b/")
    text = path.read_text(encoding="utf-8")
    for hunk in hunks:
        lines = [line or " " for line in hunk.splitlines()]
        old = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
        new = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
        if not old.strip():
            old, new = "", new
        assert text.count(old) == 1, f"{path}: {text.count(old)} places have\n{old}"
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_part_is_added_as_the_page_says(page: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    tree = tmp_path_factory.mktemp("clone")
    for name in ("tokenizers_vq", "prior", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.png", "golden"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    todo = []
    for block in blocks(page):
        if block.kind == "python" and block.title:
            assert not (tree / block.title).exists()
            (tree / block.title).write_text(block.body, encoding="utf-8")
        elif block.kind == "diff":
            edit(tree, block.body)
        elif block.kind == "bash":
            todo += list(commands(block.body))
    # One process for all, since torch takes seconds to import.
    script = _FOLLOW.format(commands=todo, tree=str(tree))
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    ruff = [sys.executable, "-m", "ruff", "check", *(block.title for block in blocks(page) if block.title)]
    checked = subprocess.run(ruff, cwd=tree, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
