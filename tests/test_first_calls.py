"""Every public name works as the first thing that a process asks of the package, whatever it would import first."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

REACHES_TORCHVISION = {"torchvision", "timm", "lpips", "diffusers", "transformers", "torchmetrics"}
SHIM = "tokenizers_vq._torchvision"


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module


def _modules() -> list[Path]:
    return [path for top in ("tokenizers_vq", "prior") for path in sorted((ROOT / top).rglob("*.py"))]


def test_the_shim_comes_before_what_imports_torchvision() -> None:
    """In the module itself, or in a package around it or imported above, whose `__init__` runs first."""
    packages = [path.parent for path in _modules() if path.name == "__init__.py"]
    shimmed = {SHIM} | {
        ".".join(folder.relative_to(ROOT).parts)
        for folder in packages
        if any(name == SHIM for _, name in _imports(folder / "__init__.py"))
    }
    seen = 0
    for path in _modules():
        lines = [line for line, name in _imports(path) if name.split(".")[0] in REACHES_TORCHVISION]
        if not lines:
            continue
        seen += 1
        above = [name for line, name in _imports(path) if line < min(lines)]
        if path.name != "__init__.py":
            above.append(".".join(path.relative_to(ROOT).parent.parts))
        ahead = any(name == one or name.startswith(f"{one}.") for name in above for one in shimmed)
        assert ahead, f"{path.relative_to(ROOT)}: import {SHIM} first"
    assert seen > 8


CALLS = """
import os, sys
import numpy, torch, pydantic, yaml, PIL.Image  # what costs time and reaches no torchvision
assert "torchvision" not in sys.modules and "timm" not in sys.modules
PIL.Image.new("RGB", (80, 70)).save(sys.argv[1])
import tokenizers_vq as tvq
calls = {name: (lambda name=name: getattr(tvq, name)) for name in tvq.__all__}
calls |= {
    "images.read": lambda: tvq.images.read(sys.argv[1], size=64),
    "create": lambda: tvq.create("vqvae-tiny-64", ["encoder.width=16", "decoder.width=16"]),
    "list_models": lambda: tvq.list_models(),
    "prior": lambda: __import__("prior").load,
    "data": lambda: __import__("tokenizers_vq.data.loading"),
    "resizing": lambda: __import__("tokenizers_vq.resizing"),
}
for name, call in calls.items():
    if os.fork() == 0:
        try:
            call()
        except BaseException as error:
            print(name, repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    assert os.wait()[1] == 0, name
print(len(calls))
"""


def test_loading_a_small_model_imports_nothing_that_takes_longer_than_it() -> None:
    code = "import sys, tokenizers_vq as tvq; tvq.load('vit-vqgan-tiny-64'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert not {"timm", "torchvision", "accelerate", "datasets", "transformers"} & set(done.stdout.split())


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_every_public_name_can_be_the_first(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", CALLS, str(tmp_path / "a.png")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) > 10
