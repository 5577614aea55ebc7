"""A folder of diffusers' `VQModel`: the VQGAN network around one codebook, under diffusers' names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizers_vq.export.graphs import Tensors, compare, examples
from tokenizers_vq.tokenizer import Tokenizer
from tokenizers_vq.writing import write_atomically, write_tensors

FILES = ("config.json", "diffusion_pytorch_model.safetensors", "export.json")

_HALF = {
    *("kind", "width", "multipliers", "blocks", "attention", "middle_attention", "latent_width", "groups", "norm"),
    "dropout",
}
_SPATIAL_GROUPS = 32  # fixed there, whatever the config
_RENAMES = (
    (r"^(encoder)\.levels\.(\d+)\.", r"\1.down_blocks.\2."),
    (r"^(decoder)\.levels\.(\d+)\.", r"\1.up_blocks.\2."),
    (r"\.blocks\.(\d+)\.", r".resnets.\1."),
    (r"\.attention\.(\d+)\.", r".attentions.\1."),
    (r"^(encoder\.\w+\.\d+)\.resample\.", r"\1.downsamplers.0."),
    (r"^(decoder\.\w+\.\d+)\.resample\.", r"\1.upsamplers.0."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"(\.attentions\.\d+)\.norm\.((?:norm|scale|bias)\.\w+)$", r"\1.spatial_norm.\2"),
    (r"(\.attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(\.attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(\.attentions\.\d+)\.out\.", r"\1.to_out.0."),
    (r"^(encoder|decoder)\.norm\.", r"\1.conv_norm_out."),
    (r"(norm\d?|norm_out)\.norm\.", r"\1.norm_layer."),  # spatial: the norm, and what the code makes of it
    (r"\.scale\.", ".conv_y."),
    (r"\.bias\.(\w+)$", r".conv_b.\1"),
    (r"^decoder\.head\.", "decoder.conv_out."),
    (r"^(?:encoder|decoder)\.((?:post_)?quant_conv)\.", r"\1."),
)


def write(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """Write config and weights into `folder`; compared with the tokenizer where diffusers is installed.

    Raises `ValueError` naming what in the tokenizer `VQModel` has no place for.
    """
    problem = _problem(tokenizer)
    if problem:
        raise ValueError(f"diffusers' VQModel {problem}: export to torch or onnx instead")
    write_atomically(folder / FILES[0], json.dumps(_config(tokenizer), indent=2) + "\n")
    write_tensors(folder / FILES[1], _tensors(tokenizer))
    report: dict[str, Any] = {"fingerprint": tokenizer.fingerprint, "differs": _differs(tokenizer), "compared": None}
    import tokenizers_vq._torchvision  # noqa: F401  (before diffusers, which imports torchvision)

    try:
        from diffusers import VQModel
    except ImportError:
        return report
    model, given = VQModel.from_pretrained(folder, local_files_only=True), examples(tokenizer)

    @torch.no_grad()
    def encode(inputs: Tensors) -> Tensors:
        latents = model.encode(inputs[0]).latents
        codes = model.quantize(latents)[2][2]
        return (codes.reshape(len(latents), *latents.shape[-2:]),)

    @torch.no_grad()
    def decode(inputs: Tensors) -> Tensors:
        shape = (*inputs[0].shape, model.config.vq_embed_dim)
        vectors = model.quantize.get_codebook_entry(inputs[0].reshape(-1), shape)
        images = model.decode(vectors, force_not_quantize=True).sample
        return (images.clamp(-1, 1) if tokenizer.config.pixels.clamp else images,)

    report["compared"] = {
        part: compare(tokenizer, part, given, run) for part, run in (("encode", encode), ("decode", decode))
    }
    return report


def _differs(tokenizer: Tokenizer) -> list[str]:
    """What whoever calls `VQModel` has to do otherwise than here, a sentence each."""
    found = ["decode(vectors) quantizes again: pass force_not_quantize=True with the vectors of codes"]
    if tokenizer.config.pixels.clamp:
        found.append("decode does not clamp: its images equal the tokenizer's after .clamp(-1, 1)")
    return found


def _problem(tokenizer: Tokenizer) -> str | None:
    """What `VQModel` cannot hold, in words that follow its name."""
    config = tokenizer.config
    if config.kind != "flat":
        return "has one grid of codes"
    if config.quantizer.kind != "vector":
        return f"has one codebook searched by distance, this tokenizer a quantizer of kind '{config.quantizer.kind}'"
    kinds = {config.encoder.kind, config.decoder.kind}
    if kinds != {"vqgan"}:
        return f"has the network of kind 'vqgan', this tokenizer '{config.encoder.kind}' and '{config.decoder.kind}'"
    encoder, decoder = config.encoder.arguments(), config.decoder.arguments()
    spatial = decoder["norm"] == "spatial"
    shared = ["width", "multipliers", "middle_attention", "latent_width", *([] if spatial else ["groups"])]
    differ = [name for name in shared if encoder[name] != decoder[name]]
    if differ:
        return f"has the same {differ[0]} in encoder and decoder"
    if spatial and decoder["groups"] != _SPATIAL_GROUPS:
        return f"has {_SPATIAL_GROUPS} groups in every spatial norm, not {decoder['groups']}"
    if spatial and decoder["latent_width"] not in (None, config.quantizer.dim):
        return f"has spatial norms of the code's own width, not of latent_width {decoder['latent_width']}"
    if decoder["blocks"] != encoder["blocks"] + 1:
        return f"has one block a level more in the decoder, not {encoder['blocks']} and {decoder['blocks']}"
    if encoder["multipliers"][0] != 1:
        return "has as many channels after its first convolution as at the first level"
    if (config.pixels.low, config.pixels.high) != (-1.0, 1.0):
        return f"sees images in [-1, 1], this tokenizer's network in [{config.pixels.low:g}, {config.pixels.high:g}]"
    for part in (config.encoder, config.decoder):
        odd = [name for name in part.to_dict(defaults=False) if name not in _HALF]
        if odd:
            return f"has nothing like {odd[0]}={getattr(part, odd[0])}"
    return None


def _config(tokenizer: Tokenizer) -> dict[str, Any]:
    config, network = tokenizer.config, tokenizer.config.encoder.arguments()
    levels = len(network["multipliers"])
    upper = config.decoder.arguments()["attention"]
    down = ["AttnDownEncoderBlock2D" if i in network["attention"] else "DownEncoderBlock2D" for i in range(levels)]
    up = ["AttnUpDecoderBlock2D" if i in upper else "UpDecoderBlock2D" for i in reversed(range(levels))]
    return {
        "_class_name": "VQModel",
        "in_channels": config.channels,
        "out_channels": config.channels,
        "down_block_types": down,
        "up_block_types": up,
        "block_out_channels": [round(network["width"] * multiplier) for multiplier in network["multipliers"]],
        "layers_per_block": network["blocks"],
        "act_fn": "silu",
        "latent_channels": network["latent_width"] or tokenizer.quantizer.dim,
        "sample_size": max(config.size),
        "num_vq_embeddings": tokenizer.quantizer.num_codes,
        "norm_num_groups": network["groups"],
        "vq_embed_dim": tokenizer.quantizer.dim,
        "norm_type": config.decoder.arguments()["norm"],
        "mid_block_add_attention": network["middle_attention"],
        "lookup_from_codebook": False,
        "force_upcast": False,
    }


def _tensors(tokenizer: Tokenizer) -> dict[str, Tensor]:
    # Of unit vectors the nearest to any feature is the one with the largest cosine, so `codebook` serves both searches.
    quantizer: Any = tokenizer.quantizer
    tensors = {"quantize.embedding.weight": quantizer.codebook.detach().contiguous()}
    attends = tokenizer.config.encoder.arguments()["middle_attention"]
    middle = dict(enumerate(("resnets.0", *(["attentions.0"] if attends else []), "resnets.1")))
    for name, tensor in tokenizer.state_dict().items():
        if name.startswith("quantizer."):
            continue
        name = re.sub(r"\.middle\.(\d)\.", lambda match: f".mid_block.{middle[int(match[1])]}.", name)
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        linear = ".to_" in name and tensor.ndim == 4
        tensors[name] = (tensor.flatten(1) if linear else tensor).contiguous()
    return tensors
