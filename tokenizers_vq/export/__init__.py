"""Tokenizers for other runtimes: `export(tokenizer, to, out)` writes a folder, compared with the tokenizer."""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_vq.config import nearest
from tokenizers_vq.writing import replacing, write_atomically

if TYPE_CHECKING:
    from tokenizers_vq.tokenizer import Tokenizer

FORMATS = {"diffusers": "diffusers", "torch": "programs", "onnx": "onnx"}
"""`export`'s format -> the module of this package that writes it"""
REPORT = "export.json"


def export(tokenizer: Tokenizer, to: str, out: str | Path) -> dict[str, Any]:
    """Write the folder `out` and return what was compared.

    `torch`: `encode.pt2` (images -> codes) and `decode.pt2` (codes -> images) for `torch.export.load`. `onnx`: the
    same as `encode.onnx` and `decode.onnx`. Both take any batch, and any height and width where the network and the
    runtime allow. `diffusers`: a folder for `VQModel.from_pretrained`. `export.json` beside them holds the fingerprint,
    what was compared, and what a caller has to do otherwise than here. All compute in float32; a tokenizer on a GPU or
    in bfloat16 is copied first.

    What was written is loaded and compared with the tokenizer before `out` appears, at once and whole. Raises
    `ValueError` for an unknown format, an architecture that the format cannot hold, a package that is not installed,
    codes that differ, or an `out` that holds anything but an earlier export.
    """
    if to not in FORMATS:
        raise ValueError(f"no format '{to}'{nearest(to, sorted(FORMATS))}")
    out = Path(out)
    writer = importlib.import_module(f"tokenizers_vq.export.{FORMATS[to]}")
    with replacing(out) as new:
        found = {path.name for path in out.iterdir()} if out.is_dir() else set()
        if (out.exists() and not out.is_dir()) or not found <= set(writer.FILES):
            other = ", ".join(sorted(found - set(writer.FILES))[:3]) or "no folder"
            raise ValueError(f"{out} is not an earlier export to {to} ({other}): give --out another folder")
        report: dict[str, Any] = {"format": to, **writer.write(copy.deepcopy(tokenizer).cpu().float().eval(), new)}
        if REPORT in writer.FILES:
            write_atomically(new / REPORT, json.dumps(report, indent=2) + "\n")
        for path in new.iterdir():
            path.chmod(0o644)  # some writers keep files to their owner
    return report
