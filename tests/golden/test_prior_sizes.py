"""Recorded priors with every size replaced by a published one are read as the catalogue's presets, without memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prior.cli.info import outline
from prior.conversion import SOURCES, Given, catalogue
from prior.conversion.sources import module
from tests.conftest import shared
from tests.golden.test_priors import weights
from tokenizers_vq.conversion.checkpoint import read_tensors
from tokenizers_vq.devices import without_memory

LAYER = re.compile(r"(.*?(?:blocks|layers?)\.)(\d+)(\..*)")


def enlarged(tensors: dict[str, Tensor], sizes: dict[int, int], layers: int) -> dict[str, Tensor]:
    """Tensors of other sizes and of more blocks like the first, all of one element's memory."""
    found = {}
    for key, tensor in tensors.items():
        wide = torch.zeros(1).expand([sizes.get(size, size) for size in tensor.shape])
        match = LAYER.match(key)
        if match is None:
            found[key] = wide
        elif match[2] == "0":
            found.update({f"{match[1]}{layer}{match[3]}": wide for layer in range(layers)})
    return found


def rar(dim: int, hidden: int) -> dict[int, int]:
    widths = {48: dim, 96: 2 * dim, 144: 3 * dim, 288: 6 * dim, 192: hidden, 12: dim // 16}
    return widths | {64: 1024, 76: 1024 + 1002, 1040: 256 + 1024, 116: 256 + 100}


def llamagen(dim: int, hidden: int) -> dict[int, int]:
    return {96: dim, 288: 3 * dim, 256: hidden, 50: 16384, 6: 1001}


def bert(length: int) -> dict[int, int]:
    return {48: 768, 192: 3072, 64: 4096, 76: 4096 + 1002, 17: length + 1}


CASES = {
    "llamagen/c2i-b": ("llamagen-gpt/c2i-pt", llamagen(768, 2048), 12),
    "llamagen/c2i-l-384": ("llamagen-gpt/c2i-pt", llamagen(1024, 2816), 24),
    "llamagen/c2i-3b-384": ("llamagen-gpt/c2i-pt", llamagen(3200, 8704), 24),
    "rar/b": ("rar/plain", rar(768, 3072), 24),
    "rar/xxl": ("rar/plain", rar(1408, 6144), 40),
    "titok/l32": ("maskgit-transformer/vit", bert(32), 24),
    "titok/b64": ("maskgit-transformer/vit", bert(64), 24),
}


@pytest.mark.parametrize("name", CASES)
def test_a_file_of_published_sizes_is_read_as_its_preset(name: str) -> None:
    case, sizes, layers = CASES[name]
    folder, published = shared(f"golden/{case}"), catalogue.entry(name)
    assert published.source == folder.parent.name and weights(folder) is not None
    tensors = read_tensors(weights(folder), *SOURCES[published.source].wrappers)  # type: ignore[arg-type]
    given = Given(enlarged(tensors, sizes, layers), published.config or {}, Path(name))
    with without_memory():
        read = module(published.source).read(given)
    preset = outline(published)
    assert preset is not None and read.layout == preset.layout
    assert {key: tensor.shape for key, tensor in read.tensors.items()} == {
        key: tensor.shape for key, tensor in preset.state_dict().items()
    }
