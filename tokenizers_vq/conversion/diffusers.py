"""diffusers' VQModel: a folder with config.json and diffusion_pytorch_model.safetensors or .bin."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenizers_vq.conversion.checkpoint import read_config
from tokenizers_vq.conversion.given import whole, wholes
from tokenizers_vq.conversion.keys import fill, rename
from tokenizers_vq.conversion.pretrained import config_beside, read_below, weight_files
from tokenizers_vq.networks.vqgan import VqganDecoderConfig, VqganEncoderConfig
from tokenizers_vq.quantizers import VectorQuantizerConfig
from tokenizers_vq.tokenizer import PixelRange, Tokenizer, TokenizerConfig

DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 3,
    "sample_size": 32,
    "num_vq_embeddings": 256,
    "norm_num_groups": 32,
    "vq_embed_dim": None,
    "norm_type": "group",
    "mid_block_add_attention": True,
}
"""VQModel's arguments, which a config.json may leave out"""

OF_PIPELINES = ("scaling_factor", "force_upcast", "lookup_from_codebook")
"""fields for the diffusion around a VQModel: they change neither codes nor what codes decode to"""

NAMES = ("diffusion_pytorch_model", "diffusion_pytorch_model.fp16", "diffusion_pytorch_model.non_ema")
"""files of weights, without ending"""

_RULES = [
    (r"\.(?:down|up)_blocks\.(\d+)\.resnets\.", r".levels.\1.blocks."),
    (r"\.(?:down|up)_blocks\.(\d+)\.attentions\.", r".levels.\1.attention."),
    (r"\.(?:down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.", r".levels.\1.resample."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.(?:group_norm|spatial_norm|conv_norm_out)\.", ".norm."),
    (r"\.norm_layer\.", ".norm."),
    (r"\.conv_y\.", ".scale."),
    (r"\.conv_b\.", ".bias."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"\.(?:to_q|query)\.", ".q."),
    (r"\.(?:to_k|key)\.", ".k."),
    (r"\.(?:to_v|value)\.", ".v."),
    (r"\.(?:to_out\.0|proj_attn)\.", ".out."),  # the second names are those of old files
    (r"^decoder\.conv_out\.", "decoder.head."),
    (r"^quant_conv\.", "encoder.quant_conv."),
    (r"^post_quant_conv\.", "decoder.post_quant_conv."),
    (r"^quantize\.embedding\.weight$", "quantizer.weight"),
]


def convert(path: Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a VQModel's folder, of a pipeline's with one inside, or of a file with config.json beside it.

    Pixels are [-1, 1], not clamped. Raises `ValueError` for another class of model, and for fields that would change
    what its networks compute in a way ours do not have.
    """
    path = _inside_pipeline(path)
    fields = _fields(config_beside(path, config), path)
    widths = fields["block_out_channels"]
    multipliers = tuple(width // widths[0] if width % widths[0] == 0 else width / widths[0] for width in widths)
    common = {
        "width": widths[0],
        "multipliers": multipliers,
        "middle_attention": fields["mid_block_add_attention"],
        "latent_width": fields["latent_channels"],
    }
    spatial = fields["norm_type"] == "spatial"
    last, groups = len(widths) - 1, fields["norm_num_groups"]
    stride = 2**last
    described = TokenizerConfig(
        image_size=-(-fields["sample_size"] // stride) * stride,
        channels=fields["in_channels"],
        pixels=PixelRange(clamp=False),
        encoder=VqganEncoderConfig(
            **common,
            blocks=fields["layers_per_block"],
            groups=groups,
            attention=tuple(i for i, kind in enumerate(fields["down_block_types"]) if kind.startswith("Attn")),
        ),
        quantizer=VectorQuantizerConfig(
            num_codes=fields["num_vq_embeddings"],
            dim=fields["vq_embed_dim"] or fields["latent_channels"],
            legacy_beta=True,
        ),
        decoder=VqganDecoderConfig(
            **common,
            blocks=fields["layers_per_block"] + 1,
            groups=32 if spatial else groups,  # fixed there
            norm="spatial" if spatial else "group",
            attention=tuple(
                sorted(last - i for i, kind in enumerate(fields["up_block_types"]) if kind.startswith("Attn"))
            ),
        ),
    )
    tensors = read_below(weight_files(path, NAMES), "quantize.embedding.weight")
    return fill(described.build, our_keys(tensors, fields["mid_block_add_attention"]), path)


def _inside_pipeline(path: Path) -> Path:
    """The folder of the one VQModel in a pipeline's folder; other paths as they are."""
    if not (path / "model_index.json").is_file():
        return path
    found = [file.parent for file in sorted(path.glob("*/config.json")) if _class(file) == "VQModel"]
    if len(found) != 1:
        raise ValueError(f"{path} is a pipeline with {len(found)} VQModels: give the folder of the one to convert")
    return found[0]


def _class(file: Path) -> str | None:
    return (read_config(file) or {}).get("_class_name")


def our_keys(tensors: Mapping[str, Tensor], middle_attention: bool) -> dict[str, Tensor]:
    """The tensors by our keys; attention's linear layers become 1x1 convolutions."""
    second = r"\.mid_block\.resnets\.1\.", f".middle.{2 if middle_attention else 1}."
    ours = rename(tensors, [second, *_RULES])
    attention = re.compile(r"\.(?:attention\.\d+|middle\.1)\.(?:q|k|v|out)\.weight$")
    for key, tensor in ours.items():
        if attention.search(key) and tensor.ndim == 2:
            ours[key] = tensor[:, :, None, None]
    return ours


def _fields(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    if not config:
        raise ValueError(f"{path} has no config.json beside the weights: give the one it was published with as config")
    model = config.get("_class_name", "VQModel")
    if model != "VQModel":
        raise ValueError(f"{path} is a {model} of diffusers, which gives no codes: only its VQModel does")
    for name, value in config.items():
        if name not in DEFAULTS and name not in OF_PIPELINES and not name.startswith("_") and value is not None:
            raise ValueError(
                f"{path}: its config sets {name}, which this VQModel does not have: convert would ignore it"
            )
    fields = {name: _typed(config, name, default) for name, default in DEFAULTS.items()}
    if not fields["block_out_channels"] or min(fields["block_out_channels"]) < 1:
        raise ValueError(
            f"{path}: block_out_channels {list(fields['block_out_channels'])} are not the channels of levels"
        )
    count = len(fields["block_out_channels"])
    for name, kinds in (
        ("down_block_types", ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")),
        ("up_block_types", ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")),
    ):
        other = [kind for kind in fields[name] if kind not in kinds]
        if other or len(fields[name]) != count:
            wrong = f"holds {other[0]}" if other else f"has {len(fields[name])} entries for {count} levels"
            raise ValueError(
                f"{path}: {name} {wrong}: it must give {' or '.join(kinds)} for each of block_out_channels"
            )
    if fields["act_fn"] not in ("silu", "swish"):
        raise ValueError(f"{path}: its activation is {fields['act_fn']}, only silu is supported")
    if fields["norm_type"] not in ("group", "spatial"):
        raise ValueError(f"{path}: norm_type is {fields['norm_type']}, only group and spatial are supported")
    if fields["norm_type"] == "spatial" and fields["vq_embed_dim"] not in (None, fields["latent_channels"]):
        raise ValueError(
            f"{path}: with spatial norms vq_embed_dim must be latent_channels ({fields['latent_channels']}), "
            f"got {fields['vq_embed_dim']}: diffusers cannot decode with it either"
        )
    if fields["in_channels"] != fields["out_channels"]:
        raise ValueError(f"{path}: {fields['in_channels']} channels in, {fields['out_channels']} out; they must agree")
    return fields


def _typed(config: Mapping[str, Any], name: str, default: Any) -> Any:
    """The value of a field, of the kind of its default. Raises `ValueError` for another kind."""
    value = config.get(name)
    if name == "sample_size" and isinstance(value, (list, tuple)):
        return max(wholes(config, name, ()), default=default)
    if name == "block_out_channels":
        return wholes(config, name, default)
    if isinstance(default, tuple):
        value = default if value is None else value
        if not isinstance(value, (list, tuple)) or not all(isinstance(kind, str) for kind in value):
            raise ValueError(f"the config's {name} must be a list of names of blocks")
        return tuple(value)
    if isinstance(default, bool):
        return default if value is None else bool(value)
    if isinstance(default, str):
        return default if value is None else str(value)
    return None if value is None and default is None else whole(config, name, default or 0)
