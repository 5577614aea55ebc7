"""PixelCNNs whose code is published: PixelSNAIL over VQ-VAE-2's codes (rosinality's vq-vae-2-pytorch, arXiv 1906.00446)
and gated PixelCNN over VQ-VAE's (ritheshkumar95's pytorch-vqvae, arXiv 1606.05328)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prior.conditions import ClassConfig, ConditionConfig, GridsConfig, NoneConfig
from prior.conversion.base import Converted, Given
from prior.conversion.keys import depth
from prior.networks.pixelcnn import PixelCnnConfig
from prior.networks.pixelsnail import PixelSnailConfig
from prior.sequences import LayoutConfig
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.conversion.checkpoint import expect
from tokenizers_vq.conversion.given import number, wholes
from tokenizers_vq.conversion.keys import rename, skip
from tokenizers_vq.conversion.maskgit import wanted
from tokenizers_vq.conversion.vqgan_keys import agree

HEADS = 8  # of all PixelSNAILs there: its code has no other
_SNAIL_RULES = [
    (r"\.conv\.", "."),
    (r"\.conv\.", "."),
    (r"\.weight_v$", ".weight"),
    (r"\.weight_g$", ".gain"),
    (r"\.condition\.", ".told."),
    (r"\.aux_conv\.", ".aux."),
    (r"\.resblocks\.", ".residuals."),
    (r"\.(key|query|out)_resblock\.", r".attention.\1_block."),
    (r"\.causal_attention\.", ".attention."),
    (r"^horizontal\.", "network.above."),
    (r"^vertical\.", "network.left."),
    (r"^blocks\.", "network.blocks."),
    (r"^cond_resnet\.blocks\.0\.", "condition.enter."),
]
_GATED_RULES = [
    (r"^embedding\.", "network.tokens."),
    (r"^layers\.", "network.layers."),
    (r"\.vert_stack\.", ".vertical."),
    (r"\.horiz_stack\.", ".horizontal."),
    (r"\.vert_to_horiz\.", ".across."),
    (r"\.horiz_resid\.", ".out."),
    (r"^output_conv\.0\.", "network.inner_head."),
    (r"^output_conv\.2\.", "network.head."),
]


def read(given: Given) -> Converted:
    """Either prior, which its keys tell; sizes are read from the tensors.

    A PixelSNAIL's file tells its grid. The top one is told nothing; the bottom one, which is told the top codes, models
    grid 1 of two. A gated PixelCNN's file tells no grid: its tokenizer does, or `shape` in the config. Raises
    `ValueError` where neither does, and for a config that contradicts the tensors.
    """
    expect(given.config, given.config, ("class", "shape", "n_class", "input_dim", "dim", "channel"), given.path)
    snail = any(key.startswith(("horizontal.", "vertical.", "background")) for key in given.tensors)
    name = "PixelSNAIL" if snail else "GatedPixelCNN"
    agree(given.config, {"class": name}, given.path)
    return _snail(given) if snail else _gated(given)


def _snail(given: Given) -> Converted:
    path, config = given.path, given.config
    background = wanted(given.tensors, "background", path)
    if background.ndim != 4:
        raise ValueError(f"{path}: background is {tuple(background.shape)}, expected (1, 2, rows, columns)")
    height, width = background.shape[2:]
    tensors = rename(skip(given.tensors, r"background$", "it is computed"), _SNAIL_RULES)
    after = depth(tensors, r"out\.")  # residual branches, an ELU, the last layer
    rules = [(rf"^out\.{after - 1}\.", "network.head."), (r"^out\.", "network.out_residuals.")]
    shift = [(rf"^cond_resnet\.blocks\.{number}\.", f"condition.blocks.{number - 1}.") for number in range(1, 100)]
    ours = rename(tensors, [*rules, *shift])
    for key in list(ours):
        if re.search(r"attention\.(query|key|value)\.(weight|gain)$", key):
            ours[key] = ours[key][..., None, None]
    _check_places(background, height, width, path)
    above = wanted(ours, "network.above.weight", path)
    dim, codes = above.shape[:2]
    agree(config, {"shape": (height, width), "n_class": codes, "channel": dim}, path)
    attention = any(".attention." in key for key in ours)
    residual = wanted(ours, "network.blocks.0.residuals.0.conv1.weight", path)
    gate = ours.get("network.blocks.0.residuals.0.told.weight")
    network = PixelSnailConfig(
        layers=depth(ours, r"network\.blocks\."),
        residuals=depth(ours, r"network\.blocks\.0\.residuals\."),
        dim=dim,
        hidden=residual.shape[0],
        kernel=residual.shape[-1],
        attention=attention,
        heads=HEADS if attention else 1,
        out_residuals=after - 2,
        entry="stem" if gate is None else "gates",
        told_width=None if gate is None else gate.shape[1],
        dropout=number(config, "dropout", 0.1),
    )
    if gate is None:
        ours["condition.begin"] = torch.zeros(dim)
        layout, part = CodeLayout(((height, width),), 1, (codes,)), _top(given.layout, (height, width))
        return Converted(network, NoneConfig(), layout, ours, fields=part)
    return Converted(network, *_told_top(given, ours, (height, width), codes))


def _top(made: CodeLayout | None, grid: tuple[int, int]) -> dict[str, Any]:
    """Of a tokenizer of several grids, that the coarsest one is modelled."""
    if made is None or len(made.grids) == 1 or made.grids[0] != grid:
        return {}
    return {"grids": (0,), "whole": LayoutConfig.of(made)}


def _told_top(
    given: Given, ours: Mapping[str, Tensor], grid: tuple[int, int], codes: int
) -> tuple[ConditionConfig, CodeLayout, Mapping[str, Tensor], None, dict[str, Any]]:
    enter = wanted(ours, "condition.enter.weight", given.path)
    if grid[0] % 2 or grid[1] % 2:
        raise ValueError(f"{given.path}: a grid of {grid[0]}x{grid[1]} has no top grid of half its sides")
    layout = CodeLayout(((grid[0] // 2, grid[1] // 2), grid), 1, (enter.shape[1], codes))
    inner = ours.get("condition.blocks.0.conv1.weight")
    condition = GridsConfig(
        grids=(0,),
        blocks=depth(ours, r"condition\.blocks\."),
        hidden=None if inner is None else inner.shape[0],
        kernel=enter.shape[-1],
        places=False,
        layout=LayoutConfig.of(layout),
    )
    fields = {"grids": (1,), "whole": LayoutConfig.of(layout)}
    return condition, layout.part((1,)), ours, None, fields


def _check_places(background: Tensor, height: int, width: int, path: Any) -> None:
    rows, columns = ((torch.arange(size).float() - size / 2) / size for size in (height, width))
    ours = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]
    if not torch.allclose(background.float(), ours, atol=1e-3):
        raise ValueError(f"{path}: background holds other coordinates than rows and columns from -1/2 to 1/2")


def _gated(given: Given) -> Converted:
    path, config = given.path, given.config
    ours: dict[str, Tensor] = rename(given.tensors, _GATED_RULES)
    layers = depth(ours, r"network\.layers\.")
    tables = [wanted(ours, f"network.layers.{layer}.class_cond_embedding.weight", path) for layer in range(layers)]
    if not tables:
        raise ValueError(f"{path} has no layers: it is not a GatedPixelCNN")
    codes, dim = wanted(ours, "network.tokens.weight", path).shape
    classes = len(tables[0])
    agree(config, {"input_dim": codes, "dim": dim, "n_layers": layers, "n_classes": classes}, path)
    for layer in range(layers):
        del ours[f"network.layers.{layer}.class_cond_embedding.weight"]
    # It was never trained without a class: the row of the null class is not used.
    ours["condition.classes.weight"] = F.pad(torch.cat(tables, dim=1), (0, 0, 0, 1))
    first = wanted(ours, "network.layers.0.vertical.weight", path)
    later = ours.get("network.layers.1.vertical.weight", first)
    network = PixelCnnConfig(
        layers=layers,
        dim=dim,
        first_kernel=first.shape[-1],
        kernel=later.shape[-1] if layers > 1 else 3,
        head_dim=wanted(ours, "network.inner_head.weight", path).shape[0],
        entry="direct",
    )
    condition = ClassConfig(num_classes=classes, dropout=0)
    return Converted(network, condition, CodeLayout((_grid(given),), 1, (codes,)), ours)


def _grid(given: Given) -> tuple[int, ...]:
    """Of a network that runs on any: the config's `shape`, or the tokenizer's."""
    if said := wholes(given.config, "shape", ()):
        return said
    if given.layout is not None and len(given.layout.grids) == 1:
        return given.layout.grids[0]
    raise ValueError(
        f"{given.path} does not tell on which grid its codes stand: name the tokenizer, or give a config with "
        "shape: [rows, columns]"
    )
