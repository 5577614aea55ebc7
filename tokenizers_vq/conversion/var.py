"""VAR's multi-scale tokenizer (FoundationVision/VAR; arXiv 2404.02905): latent diffusion's network, a grid a scale."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenizers_vq.conversion import pickles
from tokenizers_vq.conversion.checkpoint import below, expect, read_tensors, tensors_of
from tokenizers_vq.conversion.given import number
from tokenizers_vq.conversion.keys import fill, rename, skip
from tokenizers_vq.conversion.vqgan_keys import network_fields, our_keys, shape
from tokenizers_vq.networks.vqgan import VqganDecoderConfig, VqganEncoderConfig
from tokenizers_vq.quantizers.multiscale import MultiscaleQuantizerConfig
from tokenizers_vq.quantizers.vector import VectorQuantizerConfig
from tokenizers_vq.tokenizer import Tokenizer, TokenizerConfig

_RULES = [
    (r"^quantize\.embedding\.weight$", "quantizer.codebook.weight"),
    (r"^quantize\.quant_resi\.qresi\.", "quantizer.phis.0."),
    (r"^quantize\.quant_resi\.(?:qresi_ls\.)?(\d+)\.", r"quantizer.phis.\1."),
]


def convert(path: Path, config: dict[str, Any] | None) -> Tokenizer:
    """The tokenizer of the reference's arguments (`v_patch_nums`, `quant_resi`, `beta`); unset, its defaults.

    The file may be a checkpoint of VAR's training, whose `vae_local` the tokenizer is then. Images in [-1, 1] both
    ways, clamped by `decode` as there. Raises `ValueError` for a file that nothing marks as VAR's, and for
    `using_znorm`, which searches normalised and looks up unnormalised vectors, and which no published model has.
    """
    settings = config or {}
    expect(config, settings, ("v_patch_nums", "patch_nums", "quant_resi", "beta", "vocab_size", "using_znorm"), path)
    if settings.get("using_znorm"):
        raise ValueError(f"{path}: using_znorm is not supported: no published model has it")
    tensors = _tensors(path)
    hits = tensors.get("quantize.ema_vocab_hit_SV")
    tensors = skip(tensors, r"quantize\.ema_vocab_hit_SV$", "statistics of the training")
    ours = rename(our_keys(tensors), _RULES)
    codes, dim = shape(ours, "quantizer.codebook.weight", path)
    encoder = network_fields(ours, "encoder", path)
    given = settings.get("v_patch_nums", settings.get("patch_nums"))
    marked = hits is not None or any(key.startswith("quantizer.phis.") for key in ours)
    if not marked and given is None and settings.get("quant_resi") != 0:
        raise ValueError(
            f"{path} has no quantize.quant_resi, by which VAR's files are known: give the source it comes from, or, "
            "if it is VAR's without those convolutions, v_patch_nums or quant_resi: 0 in a config"
        )
    scales = _scales(given, hits, path)
    side = scales[-1] if isinstance(scales[-1], tuple) else (scales[-1], scales[-1])
    stride = 2 ** (len(encoder["multipliers"]) - 1)
    ratio = abs(number(settings, "quant_resi", 0.5))
    described = TokenizerConfig(
        image_size=(side[0] * stride, side[1] * stride),
        channels=shape(ours, "encoder.conv_in.weight", path)[1],
        encoder=VqganEncoderConfig(**encoder),
        quantizer=MultiscaleQuantizerConfig(
            scales=scales,
            book=VectorQuantizerConfig(num_codes=codes, dim=dim, beta=number(settings, "beta", 0.25)),
            phis=len([key for key in ours if key.startswith("quantizer.phis.") and key.endswith(".weight")]),
            phi_ratio=ratio,
        ),
        decoder=VqganDecoderConfig(**network_fields(ours, "decoder", path)),
    )
    return fill(described.build, ours, path)


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.is_file() and path.suffix != ".safetensors":
        content = pickles.read(path)
        outer = content.get("trainer", content) if isinstance(content, Mapping) else None
        inner = outer.get("vae_local") if isinstance(outer, Mapping) else None
        if isinstance(inner, Mapping):
            return tensors_of(inner, path)
    tensors = read_tensors(path, "state_dict", "model", "trainer")
    return below(tensors, "vae_local.") or tensors


def _scales(given: Any, hits: Tensor | None, path: Path) -> tuple[Any, ...]:
    published = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    if given is None:
        if hits is not None and len(hits) != len(published):
            raise ValueError(f"{path} is of {len(hits)} scales: give them as v_patch_nums in a config, [1, 2, 4] say")
        return published
    scales = tuple(tuple(s) if isinstance(s, list) else s for s in given) if isinstance(given, (list, tuple)) else ()
    sides = [scale if isinstance(scale, tuple) else (scale, scale) for scale in scales]
    if not sides or not all(len(scale) == 2 and all(type(side) is int for side in scale) for scale in sides):
        raise ValueError(f"v_patch_nums must list the scales' sides, coarse first, [1, 2, 4] say: got {given!r}")
    return scales
