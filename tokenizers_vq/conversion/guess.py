"""Which source a file looks like, for the error that another one was named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tokenizers_vq.conversion import modules, pickles
from tokenizers_vq.conversion.checkpoint import unwrapped_key
from tokenizers_vq.text import printable

_MARKS = {
    "infinity": r"(?:en|de)coder\.conv_in\.conv\.",
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
_BEHIND = r"((?:[^.]+\.){1,3}?)"
_MOST, _LONGEST = 20_000, 500
_DEEPEST = 4  # a trainer's part, its module, its state dict, tensors
_ALIKE = {"latent-diffusion": "taming", "ibq": "taming", "chameleon": "taming"} | {
    "fvq": "llamagen",
    "wetok": "open-magvit2",
    "bitdance": "open-magvit2",
    "one-d-piece": "titok",
}


def guess(path: Path) -> str | None:
    """The source whose keys these are, None where they tell nothing; never raises."""
    return _source(names(path))


def hint(source: str, path: Path) -> str:
    """`"; its keys look like those of ..."`, to stand behind an error, where they look like another source's.

    Or `"; its keys begin with ..."`, where behind that they look like any source's.
    """
    found = names(path)
    likely = _source(found)
    if likely is not None:
        return "" if likely == _ALIKE.get(source, source) else f"; its keys look like those of source '{likely}'"
    prefixes = (match[1] for name in found for mark in _MARKS.values() if (match := re.match(_BEHIND + mark, name)))
    prefix = printable(next(prefixes, ""))
    return f"; its keys begin with '{prefix}', which source '{source}' does not know: take that off" if prefix else ""


def _source(found: list[str]) -> str | None:
    return next((source for source, mark in _MARKS.items() if any(re.match(mark, name) for name in found)), None)


def names(path: Path) -> list[str]:
    """The first names of a file, of what a folder of diffusers would have, or none; never raises."""
    try:
        if path.is_dir():
            return ["encoder.down_blocks."] if any(path.glob("diffusion_pytorch_model.*")) else []
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                keys: Iterable[str] = list(file.keys())
        else:
            keys = _keys(pickles.read(path), path, _DEEPEST)
        return [unwrapped_key(name) for name in islice(keys, _MOST) if len(name) <= _LONGEST]
    except (ValueError, OSError, RuntimeError, SafetensorError):
        return []


def _keys(content: Any, path: Path, depth: int) -> Iterator[str]:
    if isinstance(content, pickles.Inert):
        content = modules.module_tensors(content, path) if "_modules" in content.attributes() else {}
    if isinstance(content, Mapping) and depth:
        for key, value in content.items():
            if isinstance(key, str):
                yield key
            yield from _keys(value, path, depth - 1)
