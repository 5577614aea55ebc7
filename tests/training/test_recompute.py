"""Gradient checkpointing: the same gradients, bit for bit, with less kept for the backward."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tokenizers_vq as tvq
from tokenizers_vq.training.recipe import load_recipe
from tokenizers_vq.training.recompute import compute_anew
from tokenizers_vq.training.runs import train
from tokenizers_vq.training.step import trunk_blocks

TINY = ("vqgan", "vit-vqgan", "vqvae", "vqvae2", "titok", "dvae", "emu3")


def gradients(tokenizer: tvq.Tokenizer, images: Tensor) -> tuple[list[Tensor], int]:
    """All gradients of one forward, and the bytes of the storages that it kept for its backward."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    parameters = [parameter for parameter in tokenizer.parameters() if parameter.requires_grad]
    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = tokenizer(images)
    total = out.output.square().mean() + sum(out.quantized.losses.values())
    return list(torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)), sum(kept.values())


def make(name: str) -> tvq.Tokenizer:
    torch.manual_seed(0)
    if name != "emu3":
        return tvq.create(f"{name}-tiny-64").train()
    network = "{kind: emu3, width: 16, multipliers: [1, 2, 2, 2], blocks: 1, groups: 4}"  # with batch norm besides
    return tvq.create("emu3-f8", [f"encoder={network}", f"decoder={network}", "image_size=64"]).train()


@pytest.mark.parametrize("name", TINY)
def test_gradients_are_the_same_and_less_is_kept(name: str) -> None:
    tokenizer = make(name)
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    other = copy.deepcopy(tokenizer)
    compute_anew(trunk_blocks(other))
    copied = copy.deepcopy(other)  # whose blocks are its own
    wanted, kept = gradients(tokenizer, images)
    found, less = gradients(other, images)
    assert all(torch.equal(one, two) for one, two in zip(wanted, found, strict=True))
    assert all(torch.equal(one, two) for one, two in zip(tokenizer.buffers(), other.buffers(), strict=True))
    # What stays are the parameters, and the inputs of blocks.
    weights = sum(parameter.nbytes for parameter in tokenizer.parameters())
    assert less < weights + 0.6 * (kept - weights), (kept, less, weights)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert all(torch.equal(one, two) for one, two in zip(wanted, gradients(copied, images)[0], strict=True))


def test_a_run_with_an_adversary_learns_the_same(small: list[str], tmp_path: Path) -> None:
    runs = []
    for said in ("false", "true"):
        recipe = load_recipe("vqgan-tiny-64", [*small, "steps=5", f"gradient_checkpointing={said}"])
        train(recipe, tmp_path / said, device="cpu")
        runs.append(tvq.load(tmp_path / said))
    assert runs[0].fingerprint == runs[1].fingerprint
    first, second = (run.state_dict() for run in runs)
    assert all(torch.equal(first[key], second[key]) for key in first)
    # It stands around what is learnt: a run goes on with the other value.
    train(
        load_recipe("vqgan-tiny-64", [*small, "steps=6", "gradient_checkpointing=false"]),
        tmp_path / "true",
        device="cpu",
    )
