"""A G + D training step with each discriminator against bare forward and backward of its networks, and its penalties.

    python -m tests.benchmarks.discriminators [--only unet stylegan2] [--precision fp32]

The tokenizer, the step and its bound are those of `training_step`. Then the discriminator's own update alone, with a
gradient penalty at every step and at every 16th, against the same without one: sixteen updates each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tests.benchmarks import ours
from tests.benchmarks.bench import compare, parser, start
from tests.benchmarks.training_step import BOUND, bare
from tokenizers_vq.batch import Batch
from tokenizers_vq.losses.record import Record
from tokenizers_vq.training.loop import make_accelerator
from tokenizers_vq.training.recipe import load_recipe
from tokenizers_vq.training.step import TokenizerTask

ROUND = 16
DISCRIMINATORS = {
    "patchgan": ours.PATCHGAN,
    "dcgan": "{kind: dcgan, width: 64, norm: group}",
    "attention": "{kind: attention, width: 32, resolution: 16}",
    "attention-l2": "{kind: attention, width: 32, resolution: 16, score: l2}",
    "multiscale": "{kind: multiscale, width: 32, scales: 3}",
    "unet": "{kind: unet, width: 32}",
    "vision_aided": "{kind: vision_aided}",
    "stylegan2": "{kind: stylegan2, width: 0.125}",
}


def update(images: Tensor, discriminator: str, every: int | None) -> Callable[[], object]:
    """Sixteen updates of the discriminator by Wasserstein's loss; `every`: of its gradient penalty, None without."""
    penalty = "[]" if every is None else f"[{{kind: gradient_penalty, every: {every}}}]"
    given = ours.step_overrides(
        images.shape[-1], 32, "fp32", discriminator.replace("layers: 2", "layers: 2, norm: group")
    )
    given += ["adversary.objective={kind: wasserstein}", f"adversary.regularisers={penalty}"]
    recipe = load_recipe("vqgan-tiny-64", given)
    task = TokenizerTask(recipe, recipe.model.build())
    adversary, optimizer = task.adversary, task.optimizers["discriminator"]
    assert adversary is not None
    adversary.discriminator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    accelerator = make_accelerator(recipe, Path(), "cpu")
    output = torch.rand_like(images) * 2 - 1

    def updates() -> None:
        for number in range(ROUND):
            record = Record(Batch(images), output, discriminator=adversary.discriminator, step=number)
            loss, _ = adversary.own_loss(adversary.discriminator, record)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()

    return updates


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--size", type=int, default=64, help="pixels of a side (default: 64)")
    options.add_argument("--width", type=int, default=32, help="channels of the tokenizer's first level (default: 32)")
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    options.add_argument("--only", nargs="+", default=list(DISCRIMINATORS), choices=DISCRIMINATORS)
    given = options.parse_args(arguments)
    start(given)
    images = torch.rand(given.batch, 3, given.size, given.size).mul_(2).sub_(1).to(memory_format=torch.channels_last)
    for name, precision in itertools.product(given.only, given.precision):
        made = {BOUND: bare, "ours": ours.training_step}
        runs = {side: make(images, given.width, precision, DISCRIMINATORS[name]) for side, make in made.items()}
        title = f"step with {name}, {given.size} px, batch {given.batch}, width {given.width}, {precision}"
        compare(title, runs, BOUND, goal=1.15 if precision == "fp32" else 1.4, repeats=given.repeats)
    without = "no penalty"
    for name in given.only:
        sides = {without: None, "gradient penalty, every 16": 16, "gradient penalty, every 1": 1}
        runs = {side: update(images, DISCRIMINATORS[name], every) for side, every in sides.items()}
        compare(
            f"{ROUND} updates of {name}, {given.size} px, batch {given.batch}, fp32",
            runs,
            without,
            repeats=given.repeats,
        )


if __name__ == "__main__":
    main()
