"""The wheel: built, unpacked outside the checkout, and used there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.stand_ins import ship_stand_ins

USE = """
import tokenizers_vq as tvq, prior, torch, pathlib, socket, sys
def refuse(*_): raise OSError("the network is off")
socket.socket.connect = refuse
assert pathlib.Path(tvq.__file__).is_relative_to(sys.argv[1]), tvq.__file__
assert pathlib.Path(prior.__file__).is_relative_to(sys.argv[1]), prior.__file__
tokenizer = tvq.create("vqvae-tiny-64").eval()
codes = tokenizer.encode(torch.zeros(1, 3, 64, 64))
tokenizer.save_pretrained("model")
assert torch.equal(tvq.load("model").decode(codes), tokenizer.decode(codes))
from tokenizers_vq.training.recipe import list_recipes, load_recipe
assert [load_recipe(name, ["data=skimage"]) for name in list_recipes()]
from prior.recipe import list_recipes as prior_recipes, load_recipe as prior_recipe
assert [prior_recipe(name, "codes") for name in prior_recipes()]
from prior.recipe import ModelConfig
from prior.models import PRESETS
from tokenizers_vq.config import read_yaml
assert [ModelConfig(**read_yaml(PRESETS / f"{name}.yaml")) for name in prior.list_models("preset")]
assert [prior.create(name, tokenizer.code_layout()) for name in ("gpt-tiny", "maskgit-tiny")]
assert [tvq.list_models("shipped"), prior.list_models("shipped")] == [names.split() for names in sys.argv[2:]]
for name in tvq.list_models("shipped"):
    tokenizer = tvq.load(name)
    assert {parameter.dtype for parameter in tokenizer.parameters()} == {torch.float32} and not tokenizer.training
    images = torch.rand(1, tokenizer.config.channels, *tokenizer.config.size) * 2 - 1
    decoded = tokenizer.decode(tokenizer.encode(images))
    assert decoded.shape == images.shape and decoded.isfinite().all()
from prior.cli import main as prior_main
for name in prior.list_models("shipped"):
    model = prior.load(name)
    tokenizer = tvq.load(model.config.tokenizer)
    assert tokenizer.fingerprint == model.config.fingerprint and tokenizer.code_layout() == model.layout
    condition = 0 if model.config.condition.kind == "class" else None
    assert tokenizer.decode(model.layout.unflatten(model.sample(1, condition))).isfinite().all()
    try:
        prior_main(["sample", name, "--count", "1", "--device", "cpu", "--out", f"{name}.png"])
    except SystemExit as stop:
        assert not stop.code
    assert pathlib.Path(f"{name}.png").is_file()
assert "taming/imagenet-f16-16384" in tvq.list_models("published")
from tokenizers_vq.cli import main
main(["models"])
"""
ROOTS = ("tokenizers_vq", "prior")
STAND_INS = ("stand-in-16", "stand-in-prior")
ONE, ALL = 8_000_000, 40_000_000  # bytes


def shipped(root: Path, package: str) -> list[str]:
    """Names of the models in a package's folder."""
    return sorted(path.parent.name for path in (root / package / "weights").glob("*/config.json"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout to which a stand-in for each kind of shipped model was added."""
    folder, copy = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("checkout")
    for package in ROOTS:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-WEIGHTS"):
        shutil.copy(ROOT / name, copy)
    weights = (copy / "tokenizers_vq" / "weights", copy / "prior" / "weights")
    ship_stand_ins(*weights, tmp_path_factory.mktemp("runs"), STAND_INS)
    build = [sys.executable, "-m", "pip", "wheel", ".", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder]
    subprocess.run(build, cwd=copy, check=True)
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
    assert all(any(name.endswith(f"licenses/{which}") for name in names) for which in ("LICENSE", "LICENSE-WEIGHTS"))
    for package, stand_in in zip(ROOTS, STAND_INS, strict=True):
        for name in (*shipped(ROOT, package), stand_in):
            for file in ("config.json", "model.safetensors", "README.md"):
                assert f"{package}/weights/{name}/{file}" in names


def test_shipped_models_are_small_and_say_whose_they_are() -> None:
    folders = [ROOT / package / "weights" / name for package in ROOTS for name in shipped(ROOT, package)]
    sizes = {folder.name: sum(path.stat().st_size for path in folder.iterdir()) for folder in folders}
    assert all(size <= ONE for size in sizes.values()) and sum(sizes.values()) <= ALL, sizes
    for folder in folders:
        tensors = load_file(folder / "model.safetensors")
        assert {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} == {torch.float16}
        card = (folder / "README.md").read_text()
        for said in (
            "**Training data:**",
            "**Licence of the data:**",
            "**Trained by:**",
            "seed",
            "## Recipe",
            "figure",
        ):
            assert said in card, (folder, said)
        assert "not recorded" not in card and "none measured" not in card, folder


def test_it_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    zipfile.ZipFile(wheel).extractall(site)
    work.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site)}
    names = [
        " ".join(sorted([*shipped(ROOT, package), stand_in]))
        for package, stand_in in zip(ROOTS, STAND_INS, strict=True)
    ]
    subprocess.run([sys.executable, "-c", USE, str(site), *names], cwd=work, env=environment, check=True)
