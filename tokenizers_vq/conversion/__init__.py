"""Published checkpoints to our tokenizers: `convert(source, weights, config)`. One published layout a file."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_vq.config import nearest
from tokenizers_vq.conversion.checkpoint import read_config
from tokenizers_vq.conversion.guess import hint

if TYPE_CHECKING:
    from tokenizers_vq.discriminators.base import Discriminator
    from tokenizers_vq.tokenizer import Tokenizer

SOURCES: dict[str, str] = {
    "bitdance": "bitdance",
    "emu3": "emu3",
    "chameleon": "chameleon",
    "janus": "janus",
    "diffusers": "diffusers",
    "cosmos": "cosmos",
    "dalle": "dalle",
    "fvq": "fvq",
    "ibq": "ibq",
    "infinity": "infinity",
    "latent-diffusion": "latent_diffusion",
    "llamagen": "llamagen",
    "maskgit": "maskgit",
    "one-d-piece": "one_d_piece",
    "rqvae": "rqvae",
    "taming": "taming",
    "open-magvit2": "open_magvit2",
    "titok": "titok",
    "var": "var",
    "vitvqgan": "vitvqgan",
    "vqvae2": "vqvae2",
    "wetok": "wetok",
}
"""`convert`'s source -> the module of this package that reads it"""


def _module(source: str) -> Any:
    if source not in SOURCES:
        raise ValueError(
            f"no source '{source}'{nearest(source, sorted(SOURCES))}; there are: {', '.join(sorted(SOURCES))}"
        )
    return importlib.import_module(f"tokenizers_vq.conversion.{SOURCES[source]}")


def convert(source: str, weights: str | Path, config: str | Path | Mapping[str, Any] | None = None) -> Tokenizer:
    """A tokenizer, float32 in eval mode, from a published checkpoint.

    `source` names the layout (`SOURCES`), `weights` a file or folder, `config` a YAML or JSON file, or its content.
    `decode` gives what the reference's gives, mapped to [-1, 1]. Nothing that a pickle holds is run. Strict: raises
    `ValueError` naming any missing, surplus or misshapen key; what a reference ignores is logged as skipped.
    """
    path = Path(weights)
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {weights}: give the checkpoint of {source} to convert")
    module, given = _module(source), read_config(config)
    try:
        return module.convert(path, given).eval()
    except ValueError as error:
        other = hint(source, path)
        if not other:
            raise
        raise ValueError(f"{error}{other}") from None


def convert_discriminator(
    source: str, weights: str | Path, config: str | Path | Mapping[str, Any] | None = None
) -> Discriminator | None:
    """The discriminator that lies in the same checkpoint, for fine-tuning; None where the layout has none."""
    read = getattr(_module(source), "convert_discriminator", None)
    return None if read is None else read(Path(weights), read_config(config))
