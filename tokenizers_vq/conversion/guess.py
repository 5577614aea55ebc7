"""Which source a file looks like, for the error that another one was named."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tokenizers_vq.conversion import modules, pickles

_MARKS = {
    "llamagen": r"encoder\.conv_blocks\.",
    "var": r"quantize\.quant_resi\.",
    "rqvae": r"quantizer\.codebooks\.\d+\.(?:weight|embed_ema)",
    "open-magvit2": r"decoder\.adaptive\.",
    "maskgit": r"decoder\.up\.\d+\.upsample_conv\.",
    "titok": r"latent_tokens$|encoder\.latent_token_positional_embedding$",
    "vitvqgan": r"encoder\.to_patch_embedding\.",
    "vqvae2": r"quantize_t\.embed$",
    "dalle": r"(?:encoder\.|decoder\.)?blocks\.group_1\.",
    "diffusers": r"encoder\.down_blocks\.",
    "taming": r"(?:first_stage_model\.)?(?:encoder\.down\.0\.block\.0|quantize\.embed)",
}
_ALIKE = {"latent-diffusion": "taming", "ibq": "taming", "chameleon": "taming"}


def guess(path: Path) -> str | None:
    """The source whose keys these are, None where they tell nothing; never raises."""
    try:
        if path.is_dir():
            return "diffusers" if any(path.glob("diffusion_pytorch_model.*")) else None
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                keys = list(file.keys())
        else:
            keys = list(_keys(pickles.read(path), path, 2))
    except (ValueError, OSError, RuntimeError, SafetensorError):
        return None
    return next((source for source, mark in _MARKS.items() if any(re.match(mark, key) for key in keys)), None)


def hint(source: str, path: Path) -> str:
    """`"; its keys look like those of ..."`, to stand behind an error, where they look like another source's."""
    likely = guess(path)
    if likely is None or likely == _ALIKE.get(source, source):
        return ""
    return f"; its keys look like those of source '{likely}'"


def _keys(content: Any, path: Path, depth: int) -> Iterator[str]:
    if isinstance(content, pickles.Inert):
        content = modules.module_tensors(content, path)
    if isinstance(content, Mapping) and depth:
        for key, value in content.items():
            yield str(key)
            yield from _keys(value, depth - 1)
