"""ONNX graphs, which onnxruntime runs without torch. The search for codes is in float64, as in the tokenizer."""

from __future__ import annotations

import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from tokenizers_vq.export.graphs import Run, Tensors, build, describe, examples
from tokenizers_vq.tokenizer import Tokenizer
from tokenizers_vq.writing import naming

FILES = (
    "encode.onnx",
    "decode.onnx",
    "encode.onnx.data",  # weights beside the graph, where they would make it too large for one protobuf
    "decode.onnx.data",
    "export.json",
)


def write(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """Write both graphs into `folder`; returns what `export.json` holds. Raises `ValueError` without the packages."""
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ImportError as error:
        raise ValueError(f"ONNX needs '{error.name}': pip install 'tokenizers-vq[onnx]'") from None
    given = examples(tokenizer)
    grids = len(given[0].codes)
    graphs = {
        part: build(tokenizer, part, given, partial(_finish, folder / f"{part}.onnx", part, grids))
        for part in ("encode", "decode")
    }
    report = describe(tokenizer, graphs)
    report["versions"] |= {module.__name__: module.__version__ for module in (onnx, onnxscript, onnxruntime)}
    return report


def names(part: str, grids: int) -> tuple[list[str], list[str]]:
    """Names of a graph's inputs and outputs: `images` and `codes`, or `codes_0`, `codes_1` ... coarse first."""
    codes = ["codes"] if grids == 1 else [f"codes_{i}" for i in range(grids)]
    return (["images"], codes) if part == "encode" else (codes, ["images"])


def _finish(path: Path, part: str, grids: int, program: ExportedProgram) -> Run:
    import onnxruntime

    inputs, outputs = names(part, grids)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(program, (), dynamo=True, input_names=inputs, output_names=outputs, verbose=False)
    assert exported is not None
    _name_sizes(exported.model, part)
    with naming(path):
        exported.save(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(tensors: Tensors) -> Tensors:
        feed = {name: tensor.numpy() for name, tensor in zip(inputs, tensors, strict=True)}
        return tuple(torch.from_numpy(array) for array in session.run(outputs, feed))

    return run


def _name_sizes(model: Any, part: str) -> None:
    """`batch`, `height` and `width` for the tracer's numbered symbols, wherever a shape mentions them."""
    import onnx_ir

    wanted = ("batch", None, "height", "width") if part == "encode" else ("batch", "rows", "columns")
    found: dict[str, str] = {}
    for value in model.graph.inputs[:1]:
        for dim, name in zip(value.shape or (), wanted, strict=False):
            if name and isinstance(dim, onnx_ir.SymbolicDim) and dim.value:
                found.setdefault(dim.value, name)
    values = [*model.graph.inputs, *(output for node in model.graph.all_nodes() for output in node.outputs)]
    for value in values:
        if value.shape is None or value.shape.frozen:
            continue
        for i, dim in enumerate(value.shape):
            if isinstance(dim, onnx_ir.SymbolicDim) and dim.value:
                value.shape[i] = re.sub(r"\bs\d+\b", lambda match: found.get(match[0], match[0]), dim.value)
