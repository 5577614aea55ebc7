"""The f16 VQGAN's encoder and decoder against the same convolutions and attention products bare.

    python -m tests.benchmarks.networks --peer-path taming-transformers --dtype bfloat16 --batch 8

Every product is timed in both memory layouts and counted in its faster one; the bound holds nothing else. Peers:
taming-transformers (a checkout by --peer-path), diffusers' VQModel; both channels_last, as ours.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tokenizers_vq._torchvision  # noqa: F401  (before diffusers, which imports torchvision)
from tests.benchmarks.bench import compare, measure, parser, start
from tokenizers_vq import create
from tokenizers_vq.networks.blocks import Attention
from tokenizers_vq.training.step import compile_in_place

Run = Callable[[], object]
BOUND = "products alone (bound)"
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def products(network: nn.Module, x: Tensor, layouts: tuple[torch.memory_format, ...] = LAYOUTS) -> list[Run]:
    """Each convolution and each attention product of `network(x)`, on inputs of its own, in its fastest layout."""
    found: list[tuple[tuple[object, ...], list[Run]]] = []

    def convolution(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Conv2d)
        shape, dtype = inputs[0].shape, layer.weight.dtype
        runs = [
            partial(
                F.conv2d,
                torch.randn(shape).to(dtype, memory_format=layout),
                layer.weight.detach().contiguous(memory_format=layout),
                layer.bias,
                layer.stride,
                layer.padding,
            )
            for layout in layouts
        ]
        found.append(((shape, layer.weight.shape, layer.stride), runs))

    def attention(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        batch, width, height, breadth = inputs[0].shape
        dtype = next(layer.parameters()).dtype
        q, k, v = (torch.randn(batch, 1, height * breadth, width).to(dtype) for _ in range(3))
        weights = (q @ k.mT)[:, 0].softmax(-1)
        columns = k[:, 0].mT

        def bmm() -> None:
            torch.bmm(q[:, 0], columns)
            torch.bmm(weights, v[:, 0])

        found.append(((inputs[0].shape, "attention"), [bmm, partial(F.scaled_dot_product_attention, q, k, v)]))

    hooks = [m.register_forward_pre_hook(convolution) for m in network.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(attention) for m in network.modules() if isinstance(m, Attention)]
    network(x)
    for hook in hooks:
        hook.remove()
    fastest: dict[tuple[object, ...], Run] = {}
    for key, runs in found:
        if key not in fastest:
            seconds = measure({str(i): run for i, run in enumerate(runs)}, 2) if len(runs) > 1 else {"0": 0.0}
            fastest[key] = runs[int(min(seconds, key=lambda name: seconds[name]))]
    return [fastest[key] for key, _ in found]


def in_turn(runs: list[Run]) -> Run:
    def turn() -> None:
        for run in runs:
            run()

    return turn


def taming(width: int, size: int) -> tuple[nn.Module, nn.Module] | None:
    """taming-transformers' own encoder and decoder, where they can be imported."""
    try:
        from taming.modules.diffusionmodules.model import Decoder, Encoder
    except ImportError:
        return None
    form = {
        "ch": width, "out_ch": 3, "ch_mult": (1, 1, 2, 2, 4), "num_res_blocks": 2, "attn_resolutions": [size // 16],
        "in_channels": 3, "resolution": size, "z_channels": 256, "double_z": False,
    }  # fmt: skip
    convs = nn.Conv2d(256, 256, 1), nn.Conv2d(256, 256, 1)
    return nn.Sequential(Encoder(**form), convs[0]), nn.Sequential(convs[1], Decoder(**form))


def diffusers(width: int, size: int) -> tuple[nn.Module, nn.Module] | None:
    """diffusers' VQModel of the same form, where it is installed."""
    try:
        from diffusers import VQModel
    except ImportError:
        return None
    plain = 4
    model = VQModel(
        block_out_channels=(width, width, 2 * width, 2 * width, 4 * width), layers_per_block=2, latent_channels=256,
        down_block_types=("DownEncoderBlock2D",) * plain + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * plain,
    )  # fmt: skip
    return nn.Sequential(model.encoder, model.quant_conv), nn.Sequential(model.post_quant_conv, model.decoder)


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--batch", type=int, nargs="+", default=[1])
    options.add_argument("--size", type=int, default=256, help="pixels of a side (default: 256)")
    options.add_argument("--width", type=int, default=128, help="channels of the first level (default: 128)")
    options.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    options.add_argument("--part", nargs="+", default=["encode", "decode"], choices=["encode", "decode"])
    options.add_argument("--compile", action="store_true", help="add ours with compiled blocks")
    options.add_argument("--no-peers", action="store_true", help="ours and the bound alone")
    given = options.parse_args(arguments)
    start(given)
    both = [f"{part}.width={given.width}" for part in ("encoder", "decoder")]
    tokenizer = create("vqgan-f16-16384", [*both, f"image_size={given.size}"]).eval()
    peers = (
        {}
        if given.no_peers
        else {"taming": taming(given.width, given.size), "diffusers": diffusers(given.width, given.size)}
    )
    for name, batch, part in itertools.product(given.dtype, given.batch, given.part):
        dtype = getattr(torch, name)
        i = ("encode", "decode").index(part)
        shape = (batch, 3, given.size, given.size) if part == "encode" else (batch, 256, *(2 * [given.size // 16]))
        x = torch.randn(shape).to(dtype, memory_format=torch.channels_last)
        ready = partial(_ready, dtype=dtype)
        ours = ready(tokenizer.encoder if part == "encode" else tokenizer.decoder)
        # Without channels_last bfloat16 loses by far, and takes its time.
        layouts = LAYOUTS if dtype == torch.float32 else LAYOUTS[1:]
        runs: dict[str, Run] = {BOUND: in_turn(products(ours, x, layouts)), "ours": partial(ours, x)}
        if given.compile:
            whole = copy.deepcopy(tokenizer).to(dtype).to(memory_format=torch.channels_last)
            compile_in_place(whole)
            runs["ours, compiled blocks"] = partial(whole.encoder if part == "encode" else whole.decoder, x)
        runs |= {peer: partial(ready(modules[i]), x) for peer, modules in peers.items() if modules is not None}
        goal = 1.2 if dtype == torch.float32 else 1.7
        compare(f"{part}, {given.size} px, {name}, batch {batch}", runs, BOUND, goal=goal, repeats=given.repeats)


def _ready(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(network).eval().to(dtype).to(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
