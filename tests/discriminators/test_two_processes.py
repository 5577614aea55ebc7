"""A discriminator's step under DDP in two processes equals one process's on the whole batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.processes import in_processes
from tokenizers_vq.discriminators.base import Discriminator
from tokenizers_vq.discriminators.patchgan import PatchGAN
from tokenizers_vq.discriminators.stylegan2 import StyleGAN2
from tokenizers_vq.losses.objectives import Hinge
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.regularisers import R1

CASES = ["batch", "spectral", "none", "stylegan2"]
"""PatchGAN's norms, and the other discriminator"""


def build(case: str) -> Discriminator:
    torch.manual_seed(5)
    if case == "stylegan2":
        return StyleGAN2(3, (32, 32), width=1 / 64)
    discriminator = PatchGAN(3, width=4, layers=2, norm=case)
    for parameter in discriminator.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)  # wider than published, so that the penalty is not drowned
    return discriminator


def discriminator_step(case: str, rank: int, world: int) -> dict[str, Tensor]:
    """Gradients and buffers after one step: real and fake through the wrapper, the penalty on the eager module.

    Images are dealt out in turn, which makes StyleGAN2's groups of four the same in any number of processes.
    """
    discriminator = build(case)
    images, output = (torch.rand(8, 3, 32, 32)[rank::world] for _ in range(2))
    record = Record(images, output, discriminator=discriminator)
    wrapper = DistributedDataParallel(discriminator) if world > 1 else discriminator
    (g_adv,) = torch.autograd.grad(Hinge().generator(record), record.output)
    real, fake = wrapper(images), wrapper(record.reconstructions.detach())
    loss = Hinge().discriminator(real, fake)
    if case != "batch":
        loss = loss + R1()(record, discriminator, real, fake)
    loss.backward()
    gradients = {
        name: parameter.grad for name, parameter in discriminator.named_parameters() if parameter.grad is not None
    }
    return {"output": g_adv, **gradients, **dict(discriminator.named_buffers())}


def every_case(rank: int, world: int) -> dict[str, dict[str, Tensor]]:
    return {case: discriminator_step(case, rank, world) for case in CASES}


@pytest.fixture(scope="module")
def two() -> list[dict[str, dict[str, Tensor]]]:
    return in_processes(2, every_case)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case: str, two: list[dict[str, dict[str, Tensor]]]) -> None:
    one = discriminator_step(case, 0, 1)
    parts = [part[case] for part in two]
    # A process's loss is the mean over its half, so gradients at its own images weigh double.
    output = torch.stack([part.pop("output") for part in parts], dim=1).flatten(0, 1) / 2
    torch.testing.assert_close(output, one.pop("output"), rtol=1e-4, atol=1e-6)
    for part in parts:
        assert part.keys() == one.keys()
        for name, expected in one.items():
            torch.testing.assert_close(part[name], expected, rtol=1e-4, atol=1e-5 * max(1, expected.abs().max().item()))
