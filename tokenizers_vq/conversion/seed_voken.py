"""What Open-MAGVIT2's and IBQ's checkpoints (SEED-Voken) have in common: Lightning files, averaged copies, configs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenizers_vq.conversion.checkpoint import below, read_tensors
from tokenizers_vq.conversion.given import part, whole
from tokenizers_vq.conversion.keys import skip
from tokenizers_vq.conversion.patchgan import patchgan
from tokenizers_vq.discriminators.patchgan import PatchGAN

CONFIGURED = ("ddconfig", "n_embed", "embed_dim", "lossconfig", "use_ema")
"""fields by which a config is known"""


def settings(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The model's arguments, whether they stand under `model.init_args`, `model.params` or at the top."""
    inner = part(config or {}, "model") or config or {}
    return dict(part(inner, "init_args") or part(inner, "params") or inner)


def resolution(arguments: Mapping[str, Any]) -> int:
    """The image size that the config names; 256 where there is none."""
    return whole(part(arguments, "ddconfig"), "resolution", 256)


def read(path: Path, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tokenizer's tensors by the reference's keys, averaged where the file holds averages.

    The reference decodes with `model_ema.NAME`, NAME being the parameter's without its dots, unless the config says
    `use_ema: false`. Losses and the averages' counters are logged as skipped. Raises `ValueError` for an average
    whose parameter is missing.
    """
    tensors = read_tensors(path, "state_dict")
    averages = below(tensors, "model_ema.")
    tensors = skip(tensors, r"loss\.|model_ema\.(decay|num_updates)$", "losses and counters of training")
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith("model_ema.")}
    if not averages or arguments.get("use_ema") is False:
        return skip(tensors, r"model_ema\.", "averages that the config turns off")
    names = {key.replace(".", ""): key for key in kept}
    for name in ("decay", "num_updates"):
        averages.pop(name, None)
    for name, tensor in averages.items():
        if name in names:
            kept[names[name]] = tensor
        elif not name.startswith("loss"):
            raise ValueError(f"{path} holds an average, model_ema.{name}, of a parameter that is not there")
    return kept


def convert_discriminator(path: Path, config: Mapping[str, Any] | None = None) -> PatchGAN | None:
    """The PatchGAN below `loss.discriminator.`; None where the file holds none.

    Raises `ValueError` for the blurred one of the pretrained models.
    """
    tensors = below(read_tensors(path, "state_dict"), "loss.discriminator.")
    return patchgan(tensors, path) if tensors else None
