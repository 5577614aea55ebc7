"""`torch.export` programs, for `torch.export.load(path).module()` and AOTInductor."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from tokenizers_vq.export.graphs import Run, Tensors, build, describe, examples, parts
from tokenizers_vq.tokenizer import Tokenizer
from tokenizers_vq.writing import write_atomically

FILES = ("encode.pt2", "decode.pt2", "export.json")


def write(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """Write both programs into `folder`; returns what `export.json` holds."""
    given = examples(tokenizer)
    graphs = {
        part: build(tokenizer, part, given, partial(_finish, folder / f"{part}.pt2")) for part in ("encode", "decode")
    }
    return describe(tokenizer, graphs)


def _finish(path: Path, program: ExportedProgram) -> Run:
    buffer = io.BytesIO()  # torch's own writer of files aborts the process where the disk is full
    torch.export.save(program, buffer)
    write_atomically(path, buffer.getvalue())
    module = torch.export.load(path).module()

    @torch.no_grad()
    def run(inputs: Tensors) -> Tensors:
        outputs: Tensors = parts(module(inputs[0] if len(inputs) == 1 else inputs))
        return outputs

    return run
