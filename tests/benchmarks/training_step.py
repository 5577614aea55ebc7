"""A G + D training step against bare forward and backward of the same networks.

    python -m tests.benchmarks.training_step --peer-path taming-transformers --size 128

An f4 VQGAN with a hinge PatchGAN, L1, no perceptual loss. The bound: the tokenizer without quantizer forward and back
once, the discriminator on reconstructions and images once, back to its input and to its weights; no loss, no norm, no
optimizer. Peer: taming-transformers' training step (a checkout by --peer-path), driven as Lightning drives it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks import ours
from tests.benchmarks.bench import compare, parser, start
from tokenizers_vq import Tokenizer
from tokenizers_vq.training.recipe import load_recipe

BOUND = "forward + backward (bound)"


def bare(images: Tensor, width: int, precision: str, discriminator: str = ours.PATCHGAN) -> Callable[[], object]:
    """What any program must compute of these networks in a step."""
    recipe = load_recipe("vqgan-tiny-64", ours.step_overrides(images.shape[-1], width, precision, discriminator))
    assert recipe.adversary is not None
    tokenizer = Tokenizer(recipe.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    judge = recipe.adversary.discriminator.build(3, (images.shape[-2], images.shape[-1]))
    judge = judge.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    gradient = torch.randn(images.shape)
    own = [*tokenizer.encoder.parameters(), *tokenizer.decoder.parameters()]
    judging = [parameter for parameter in judge.parameters() if parameter.requires_grad]

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            output = tokenizer.decoder(tokenizer.encoder(images))
            fakes = output.detach().requires_grad_()
            fake, real = (sum(scale.mean() for scale in judge(seen).logits) for seen in (fakes, images))
        torch.autograd.grad(fake, fakes, retain_graph=True)
        torch.autograd.grad(output, own, gradient.to(output.dtype))
        torch.autograd.grad(fake - real, judging)

    return step


class _NoPerceptual(nn.Module):
    """Stands for taming's LPIPS, whose weights it would download; the step has no perceptual loss."""


def taming(images: Tensor, width: int, precision: str) -> Callable[[], object] | None:
    """taming-transformers' `VQModel.training_step` of its own parts, both optimizers in turn, as Lightning 1 does."""
    try:
        from taming.modules.diffusionmodules.model import Decoder, Encoder
        from taming.modules.losses import vqperceptual
        from taming.modules.vqvae.quantize import VectorQuantizer2
    except ImportError:
        return None
    vqperceptual.LPIPS = _NoPerceptual
    form = {
        "ch": width, "out_ch": 3, "ch_mult": (1, 2, 4), "num_res_blocks": 2, "attn_resolutions": [], "in_channels": 3,
        "resolution": images.shape[-1], "z_channels": 256, "double_z": False,
    }  # fmt: skip
    encoder, decoder = Encoder(**form), Decoder(**form)
    before, after, quantizer = nn.Conv2d(256, 256, 1), nn.Conv2d(256, 256, 1), VectorQuantizer2(1024, 256, beta=0.25)
    model = nn.ModuleList([encoder, before, quantizer, after, decoder])
    loss: Any = vqperceptual.VQLPIPSWithDiscriminator(disc_start=0, disc_num_layers=2, perceptual_weight=0.0)
    for part in (model, loss):
        part.to(memory_format=torch.channels_last)
    optimizers = [
        torch.optim.Adam(parameters, lr=1e-4, betas=(0.5, 0.9))
        for parameters in (model.parameters(), loss.discriminator.parameters())
    ]

    def step() -> None:
        for i, optimizer in enumerate(optimizers):
            model.requires_grad_(i == 0)  # Lightning's toggle_optimizer
            loss.discriminator.requires_grad_(i == 1)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                quantized, codebook_loss, _ = quantizer(before(encoder(images)))
                reconstructions = decoder(after(quantized))
                value, _ = loss(codebook_loss, images, reconstructions, i, 1, last_layer=decoder.conv_out.weight)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    return step


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--size", type=int, nargs="+", default=[64], help="pixels of a side (default: 64)")
    options.add_argument("--width", type=int, default=32, help="channels of the first level (default: 32)")
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    options.add_argument("--no-peers", action="store_true", help="ours and the bound alone")
    given = options.parse_args(arguments)
    start(given)
    for size, precision in itertools.product(given.size, given.precision):
        images = torch.rand(given.batch, 3, size, size).mul_(2).sub_(1).to(memory_format=torch.channels_last)
        sides = {BOUND: bare, "ours": ours.training_step} | ({} if given.no_peers else {"taming": taming})
        made = {name: make(images, given.width, precision) for name, make in sides.items()}
        runs = {name: run for name, run in made.items() if run is not None}
        title = f"step, {size} px, batch {given.batch}, width {given.width}, {precision}"
        compare(title, runs, BOUND, goal=1.15 if precision == "fp32" else 1.4, repeats=given.repeats)


if __name__ == "__main__":
    main()
