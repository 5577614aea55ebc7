"""A discriminator beside a saved tokenizer, to go on training with: `discriminator/` with config.json and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from tokenizers_vq import folders
from tokenizers_vq.judgement import Discriminator

FOLDER = "discriminator"


def describe(discriminator: Discriminator) -> dict[str, Any]:
    """Its config, the images' channels, and the size of image that it was built for (None: any)."""
    config: Any = discriminator.config
    size = getattr(discriminator, "image_size", None)
    return {
        "discriminator": config.to_dict(),
        "channels": discriminator.channels,
        "image_size": None if size is None else list(size),
    }


def save(discriminator: Discriminator, folder: Path) -> None:
    """Write config.json and model.safetensors into `folder`, running statistics included."""
    folders.save(folder, describe(discriminator), discriminator.state_dict())


def fill(discriminator: Discriminator, folder: Path) -> str | None:
    """Load the weights of `folder`; where its config is another, leave all as it is and return what differs.

    Raises one line for a folder that holds no saved discriminator, or a broken one.
    """
    saved, own = _flat(folders.read_config(folder)), _flat(describe(discriminator))
    different = [
        f"{name} is {saved.get(name)}, here {own.get(name)}"
        for name in {**saved, **own}
        if saved.get(name) != own.get(name)
    ]
    if different:
        return ", ".join(different)
    path = folder / folders.WEIGHTS
    try:
        discriminator.load_state_dict(load_file(path), strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"{path} does not fit its config.json ({str(error).splitlines()[0]}): write it again"
        ) from None
    return None


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    return {**config.get("discriminator", {}), **{name: config.get(name) for name in ("channels", "image_size")}}
