"""A discriminator beside a saved tokenizer, to go on training with: `discriminator/` with config.json and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tokenizers_vq import folders
from tokenizers_vq.config import Config, ConfigError, Size, parse
from tokenizers_vq.discriminators.base import Discriminator

FOLDER = "discriminator"


def describe(discriminator: Discriminator) -> dict[str, Any]:
    """Its config, the images' channels, and the size of image that it was built for: all that building it takes."""
    return {
        "discriminator": discriminator.config.to_dict(),
        "channels": discriminator.channels,
        "image_size": list(discriminator.image_size),
    }


def save(discriminator: Discriminator, folder: Path) -> None:
    """Write config.json and model.safetensors into `folder`, running statistics included."""
    folders.save(folder, describe(discriminator), discriminator.state_dict())


def load(folder: Path) -> Discriminator:
    """The discriminator of `folder`, in eval mode. Raises one line for a folder that holds none, or a broken one."""
    from tokenizers_vq.discriminators import DiscriminatorConfig

    class Saved(Config):
        discriminator: DiscriminatorConfig
        channels: Size
        image_size: tuple[Size, Size]

    saved = parse(Saved, folders.read_config(folder), str(folder / folders.CONFIG))
    discriminator: Discriminator = saved.discriminator.build(saved.channels, saved.image_size)
    fill(discriminator, folder)
    return discriminator.eval()


def fill(discriminator: Discriminator, folder: Path) -> str | None:
    """Load the weights of `folder`; where its config is another, leave all as it is and return what differs.

    Another size of image differs where it makes weights of other shapes.
    Raises one line for a folder that holds no saved discriminator, or a broken one.
    """
    saved, own = _flat(_completed(folders.read_config(folder), discriminator)), _flat(describe(discriminator))
    different = {
        name: f"{name} is {saved.get(name)}, here {own.get(name)}"
        for name in {**saved, **own}
        if saved.get(name) != own.get(name)
    }
    size = different.pop("image_size", None)
    if different:
        return ", ".join(different.values())
    path = folder / folders.WEIGHTS
    try:
        state = load_file(path)
        if size is not None and _shapes(state) != _shapes(discriminator.state_dict()):
            return size
        discriminator.load_state_dict(state, strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"{path} does not fit its config.json ({str(error).splitlines()[0]}): write it again"
        ) from None
    return None


def _completed(saved: dict[str, Any], discriminator: Discriminator) -> dict[str, Any]:
    """What is saved, with the defaults of fields that did not exist yet."""
    try:
        return {**saved, "discriminator": type(discriminator.config)(**saved["discriminator"]).to_dict()}
    except (ConfigError, KeyError, TypeError):  # of another kind, or no config at all
        return saved


def _shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    return {**config.get("discriminator", {}), **{name: config.get(name) for name in ("channels", "image_size")}}
