"""A preset's encoder and decoder (f16 VQGAN, ViT-VQGAN) against the same products bare.

    python -m tests.benchmarks.networks --peer-path taming-transformers --dtype bfloat16 --batch 8
    python -m tests.benchmarks.networks --preset vit-vqgan-base --peer-path enhancing-transformers

Every convolution is timed in both memory layouts, every linear map by torch's BLAS and by oneDNN, each counted in its
fastest form; the bound holds nothing else. A vision transformer's attention counts as its two products, unfused, so a
ratio under 1 is possible. Peers (checkouts by --peer-path): of the VQGAN taming-transformers, and diffusers' VQModel,
both channels_last, as ours; of the ViT enhancing-transformers, which has tanh for GELU and no tanh head: a row beside
it is ours in that form.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tokenizers_vq._torchvision  # noqa: F401  (before diffusers, which imports torchvision)
from tests.benchmarks.bench import compare, measure, parser, start
from tokenizers_vq import Tokenizer, create
from tokenizers_vq.networks.blocks import Attention
from tokenizers_vq.networks.transformer import Attention as HeadsAttention
from tokenizers_vq.training.step import compile_in_place

Run = Callable[[], object]
BOUND = "products alone (bound)"
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def products(network: nn.Module, x: Tensor, layouts: tuple[torch.memory_format, ...] = LAYOUTS) -> list[Run]:
    """Each convolution, linear map and attention of `network(x)`, on inputs of its own, in its fastest form."""
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

    def linear(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Linear)
        shape, dtype = inputs[0].shape, layer.weight.dtype
        rows = torch.randn(shape.numel() // shape[-1], shape[-1]).to(dtype)
        bias = None if layer.bias is None else layer.bias.detach()
        weight = layer.weight.detach()
        runs: list[Run] = [partial(F.linear, rows, weight, bias)]
        if dtype == torch.float32 and torch.backends.mkldnn.is_available():
            runs.append(partial(torch.ops.mkldnn._linear_pointwise, rows, weight, bias, "none", [], ""))
        found.append(((shape, weight.shape), runs))

    def heads(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, HeadsAttention)
        batch, tokens, _ = inputs[0].shape
        shape = (batch * layer.heads, tokens, layer.head_width)
        q, k, v = (torch.randn(shape).to(layer.qkv.weight.dtype) for _ in range(3))
        weights = (q @ k.mT).softmax(-1)
        found.append(((shape, "heads"), [in_turn([partial(torch.bmm, q, k.mT), partial(torch.bmm, weights, v)])]))

    counted: list[tuple[type[nn.Module], Any]] = [
        (nn.Conv2d, convolution), (Attention, attention), (nn.Linear, linear), (HeadsAttention, heads)
    ]  # fmt: skip
    hooks = [
        m.register_forward_pre_hook(count) for kind, count in counted for m in network.modules() if isinstance(m, kind)
    ]
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


def enhancing(tokenizer: Tokenizer, paths: list[str]) -> tuple[nn.Module, nn.Module] | None:
    """enhancing-transformers' encoder and decoder of the same sizes, from its one file that needs nothing else."""
    import numpy as np

    files = [file for path in paths if (file := Path(path) / "enhancing/modules/stage1/layers.py").is_file()]
    spec = importlib.util.spec_from_file_location("enhancing_layers", files[0]) if files else None
    if spec is None or spec.loader is None:
        return None
    np.float = float  # type: ignore[attr-defined]  # numpy's name until 1.24, which it calls
    layers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(layers)

    def form(part: Any) -> dict[str, Any]:
        return {
            "image_size": tokenizer.config.size, "patch_size": part.patch, "dim": part.width, "depth": part.layers,
            "heads": part.heads, "mlp_dim": part.mlp or 4 * part.width,
            "dim_head": part.head_width or part.width // part.heads,
        }  # fmt: skip

    encoder, decoder, dim = tokenizer.config.encoder, tokenizer.config.decoder, tokenizer.quantizer.dim
    return (
        nn.Sequential(layers.ViTEncoder(**form(encoder)), nn.Linear(encoder.width, dim)),
        nn.Sequential(_Tokens(), nn.Linear(dim, decoder.width), layers.ViTDecoder(**form(decoder))),
    )


class _Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mT


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--preset", default="vqgan-f16-16384", help="vqgan-f16-16384 (default), vit-vqgan-base, ...")
    options.add_argument("--batch", type=int, nargs="+", default=[1])
    options.add_argument("--size", type=int, default=256, help="pixels of a side (default: 256)")
    options.add_argument("--width", type=int, help="channels of the first level, or of a token (default: the preset's)")
    options.add_argument(
        "--dtype", nargs="+", default=["float32", "bfloat16"], help="autocast: float32 weights, computed in bfloat16"
    )
    options.add_argument("--part", nargs="+", default=["encode", "decode"], choices=["encode", "decode"])
    options.add_argument("--compile", action="store_true", help="add ours with compiled blocks")
    options.add_argument("--no-peers", action="store_true", help="ours and the bound alone")
    given = options.parse_args(arguments)
    start(given)
    sizes = [f"image_size={given.size}"]
    sizes += [f"{part}.width={given.width}" for part in ("encoder", "decoder") if given.width]
    tokenizer = create(given.preset, sizes).eval()
    vit = tokenizer.config.encoder.kind == "vit"
    goals = {"float32": 1.0, "bfloat16": 1.4} if vit else {"float32": 1.2, "bfloat16": 1.7}
    others: dict[str, tuple[nn.Module, nn.Module] | None] = {}
    if vit and not given.no_peers:
        others["enhancing-transformers"] = enhancing(tokenizer, given.peer_path)
        plain = ("activation=tanh", "tanh_head=false", "qkv_bias=false", "positions=sincos")
        form = [f"{part}.{field}" for part in ("encoder", "decoder") for field in plain]
        same = create(given.preset, [*sizes, *form, "decoder.output=pixels"])
        others["ours in that form"] = same.encoder, same.decoder
    elif not given.no_peers:
        width = given.width or 128
        others |= {"taming": taming(width, given.size), "diffusers": diffusers(width, given.size)}
    for name, batch, part in itertools.product(given.dtype, given.batch, given.part):
        dtype = torch.bfloat16 if name == "autocast" else getattr(torch, name)
        i = ("encode", "decode").index(part)
        grid = tokenizer.code_layout().grids[0]
        features = tokenizer.encoder.quant_conv.weight.shape[0]
        shape = (batch, 3, given.size, given.size) if part == "encode" else (batch, features, *grid)
        x = torch.randn(shape).to(dtype, memory_format=torch.channels_last)
        ready = partial(_autocast if name == "autocast" else _ready, dtype=dtype)
        network = tokenizer.encoder if part == "encode" else tokenizer.decoder
        ours = ready(network)
        # Without channels_last bfloat16 loses by far, and takes its time.
        layouts = LAYOUTS if dtype == torch.float32 else LAYOUTS[1:]
        runs: dict[str, Run] = {BOUND: in_turn(products(_ready(network, dtype), x, layouts)), "ours": partial(ours, x)}
        if given.compile:
            whole = copy.deepcopy(tokenizer).to(dtype).to(memory_format=torch.channels_last)
            compile_in_place(whole)
            runs["ours, compiled blocks"] = partial(whole.encoder if part == "encode" else whole.decoder, x)
        runs |= {peer: partial(ready(modules[i]), x) for peer, modules in others.items() if modules is not None}
        title = f"{given.preset}, {part}, {given.size} px, {name}, batch {batch}"
        compare(title, runs, BOUND, goal=goals.get(name), repeats=given.repeats)


def _ready(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(network).eval().to(dtype).to(memory_format=torch.channels_last)


def _autocast(network: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], object]:
    """As `tvq encode` runs: weights and pixels in float32."""
    ready = _ready(network, torch.float32)

    def run(x: Tensor) -> object:
        with torch.autocast("cpu", dtype):
            return ready(x.float())

    return run


if __name__ == "__main__":
    main()
