"""The wheel: built, unpacked outside the checkout, and used there."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

USE = """
import tokenizers_vq as tvq, prior, torch, pathlib, sys
assert pathlib.Path(tvq.__file__).is_relative_to(sys.argv[1]), tvq.__file__
assert pathlib.Path(prior.__file__).is_relative_to(sys.argv[1]), prior.__file__
tokenizer = tvq.create("vqvae-tiny-64").eval()
codes = tokenizer.encode(torch.zeros(1, 3, 64, 64))
tokenizer.save_pretrained("model")
assert torch.equal(tvq.load("model").decode(codes), tokenizer.decode(codes))
from tokenizers_vq.training.recipe import list_recipes, load_recipe
assert [load_recipe(name) for name in list_recipes()]
assert [prior.create(name, tokenizer.code_layout()) for name in prior.list_models("preset") if "tiny" in name]
from tokenizers_vq.cli import main
main(["models"])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", ".", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder]
    subprocess.run(build, cwd=ROOT, check=True)
    return next(folder.glob("*.whl"))


def test_it_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    roots = {name.split("/")[0] for name in names}
    assert roots == {"tokenizers_vq", "prior", next(root for root in roots if root.endswith(".dist-info"))}
    packages = {
        str(path.parent.relative_to(ROOT)) for top in ("tokenizers_vq", "prior") for path in (ROOT / top).rglob("*.py")
    }
    assert {str(Path(name).parent) for name in names if name.endswith(".py")} == packages
    data = [path for top in ("tokenizers_vq", "prior") for path in (ROOT / top).rglob("*.yaml")]
    for path in [*data, ROOT / "tokenizers_vq/py.typed", ROOT / "tokenizers_vq/evaluation/templates/report.html.j2"]:
        assert str(path.relative_to(ROOT)) in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_it_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    zipfile.ZipFile(wheel).extractall(site)
    work.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site)}
    subprocess.run([sys.executable, "-c", USE, str(site)], cwd=work, env=environment, check=True)
