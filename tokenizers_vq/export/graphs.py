"""The two graphs of a tokenizer, images -> codes and codes -> images, traced for any size and held to the tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from tokenizers_vq.codes import Codes
from tokenizers_vq.tokenizer import Tokenizer
from tokenizers_vq.writing import WriteError

Tensors = tuple[Tensor, ...]
Run = Callable[[Tensors], Tensors]
"""A finished graph: its inputs to its outputs, several where codes lie on several grids"""

TOLERANCE = 1e-3
"""largest error of an image in [-1, 1]: runtimes round float32 in their own order"""
_TIE = 1e-4  # features that far off, by their length, may take another code: an encoder's rounding


class Encode(nn.Module):
    """`(B, C, H, W)` images in [-1, 1] -> codes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Tensor) -> Codes:
        return self.tokenizer.encode(images)


class Decode(nn.Module):
    """Codes -> `(B, C, H, W)` images in [-1, 1]."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, codes: Codes) -> Tensor:
        return self.tokenizer.decode(codes)


class Example(NamedTuple):
    """Images of one size, and what the tokenizer makes of them."""

    images: Tensor
    codes: Tensors
    decoded: Tensor


class Graph(NamedTuple):
    """What became of one graph."""

    dynamic: bool
    """whether any height and width go, not only the config's"""
    reason: str
    """why not, in one line"""
    compared: dict[str, Any]
    """counts and errors of the comparison with the tokenizer"""


def parts(codes: Codes) -> Tensors:
    """Codes of one or several grids as a tuple."""
    return codes if isinstance(codes, tuple) else (codes,)


def examples(tokenizer: Tokenizer) -> list[Example]:
    """Random pictures in the config's size, in batches of 2, 1 and 3; then, where any, in other sizes, non-square too.

    The second of the other sizes is the one to trace at: the config's own may be a special case.
    """
    height, width = tokenizer.config.size
    sizes = [(2, height, width), (1, height, width), (3, height, width)]
    step = next((n for n in range(1, max(height, width) + 1) if _allowed(tokenizer, height + n, width + 2 * n)), None)
    if step is not None:
        others = [(1, height + 2 * step, width), (2, height + step, width + 2 * step), (3, height, width + step)]
        smaller = (2, max(2 * step, height // 2 // step * step), max(3 * step, width // 2 // step * step))
        sizes += [size for size in (*others, smaller) if _allowed(tokenizer, *size[1:])]
    generator = torch.Generator().manual_seed(0)
    found = []
    for batch, rows, columns in sizes:
        shape = (batch, tokenizer.config.channels, rows, columns)
        coarse = torch.rand((*shape[:2], 5, 5), generator=generator)
        images = F.interpolate(coarse, (rows, columns), mode="bilinear") + torch.rand(shape, generator=generator) / 4
        images = (images * 1.6 - 1).clamp(-1, 1)
        codes = tokenizer.encode(images)
        found.append(Example(images, parts(codes), tokenizer.decode(codes)))
    return found


def _allowed(tokenizer: Tokenizer, height: int, width: int) -> bool:
    try:
        tokenizer.code_layout(height, width)
    except ValueError:
        return False
    return True


def build(tokenizer: Tokenizer, part: str, given: list[Example], finish: Callable[[ExportedProgram], Run]) -> Graph:
    """Trace `part` (encode, decode), let `finish` write and load it, and hold it to the tokenizer.

    Any height and width if that stands the comparison, else the config's alone. `finish` is called for every trial, and
    last for the one that counts. Raises `ValueError` where not even a fixed size gives what the tokenizer gives.
    """
    size = given[0].images.shape[-2:]
    others = any(example.images.shape[-2:] != size for example in given)
    reason = "" if others else "the network takes no other size"
    for dynamic, trace in _trials(tokenizer, part, given):
        held = given if dynamic else [example for example in given if example.images.shape[-2:] == size]
        try:
            return Graph(dynamic, "" if dynamic else reason, compare(tokenizer, part, held, finish(trace())))
        except WriteError:  # of the disk, not of the graph
            raise
        except Exception as error:  # exporters and runtimes raise nearly anything
            lines = str(error).strip().splitlines()
            reason = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    raise ValueError(f"the {part} graph cannot be exported ({reason}): use the tokenizer itself")


def _trials(
    tokenizer: Tokenizer, part: str, given: list[Example]
) -> Iterator[tuple[bool, Callable[[], ExportedProgram]]]:
    module = Encode(tokenizer) if part == "encode" else Decode(tokenizer)
    others = [example for example in given if example.images.shape[-2:] != given[0].images.shape[-2:]]
    if others:
        example = next((e for e in others if len(e.images) == 2), others[0])
        traced: list[ExportedProgram] = []

        def first() -> ExportedProgram:
            traced.append(_trace(module, part, example, sizes=True))
            return traced[0]

        def unguarded() -> ExportedProgram:
            # A network that takes its own size as a special case, as positions that then need no interpolation, guards
            # against it. The general case gives the same there; the comparison tells.
            if not traced:
                raise ValueError("it cannot be traced for any size")
            return _trace(traced[0].module(check_guards=False), part, example, sizes=True)

        yield True, first
        if traced:
            yield True, unguarded
    yield False, lambda: _trace(module, part, given[0], sizes=False)


def _trace(module: nn.Module, part: str, example: Example, sizes: bool) -> ExportedProgram:
    inputs = (example.images,) if part == "encode" else example.codes
    rank = {"encode": 2, "decode": 1}[part]
    grids = 2 if part == "encode" else None
    shapes = []
    for tensor in inputs:
        count = tensor.ndim - rank if grids is None else grids
        dims = {0: Dim.AUTO, **({rank + i: Dim.AUTO for i in range(count)} if sizes else {})}
        shapes.append(dims)
    argument: Any = inputs[0] if len(inputs) == 1 else inputs
    spec: Any = shapes[0] if len(inputs) == 1 else tuple(shapes)
    with torch.no_grad():  # as `encode` and `decode` are: else the graph would switch it off and on
        program = torch.export.export(module, (argument,), dynamic_shapes=(spec,), strict=False)
    return _prune(program)


def _prune(program: ExportedProgram) -> ExportedProgram:
    """Leaves out the tensors that the graph does not read, those of the other half."""
    unread = {node.name: node for node in program.graph.nodes if node.op == "placeholder" and not node.users}
    signature = program.graph_signature
    kept = []
    for spec in signature.input_specs:
        if spec.arg.name in unread and spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            program.graph.erase_node(unread[spec.arg.name])
            for store in (program.state_dict, program.constants):
                store.pop(spec.target, None)
        else:
            kept.append(spec)
    signature.input_specs[:] = kept
    program.graph_module.recompile()
    return program


def compare(tokenizer: Tokenizer, part: str, given: list[Example], run: Run) -> dict[str, Any]:
    """Counts and errors of a finished graph. Raises `ValueError` where it does not give what the tokenizer gives.

    A code may differ only where features a ten-thousandth off take that very code in the tokenizer too: there two codes
    are as near as float32 rounding can tell.
    """
    report: dict[str, Any] = {"images": 0, "sizes": []}
    for images, codes, decoded in given:
        size, inputs = list(images.shape[-2:]), (images,) if part == "encode" else codes
        outputs, wanted = run(inputs), codes if part == "encode" else (decoded,)
        got, expected = ([tuple(tensor.shape) for tensor in tensors] for tensors in (outputs, wanted))
        if got != expected:
            raise ValueError(f"a size of {size} gives {got}, the tokenizer {expected}")
        report["images"] += len(images)
        report["sizes"] += [size] if size not in report["sizes"] else []
        if part == "decode":
            error = float((outputs[0] - decoded).abs().max())
            if not error <= TOLERANCE * max(1.0, float(decoded.abs().max())):
                raise ValueError(f"images differ by {error:.2g} at a size of {size}")
            report["error"] = max(report.get("error", 0.0), error)
            continue
        differ = sum(int((a != b).sum()) for a, b in zip(outputs, codes, strict=True))
        report["codes"] = report.get("codes", 0) + sum(tensor.numel() for tensor in codes)
        report["differ"] = report.get("differ", 0) + differ
        if differ and not _near_ties(tokenizer, images, outputs, codes):
            raise ValueError(f"{differ} of {sum(c.numel() for c in codes)} codes differ at a size of {size}")
    return report


@torch.no_grad()
def _near_ties(tokenizer: Tokenizer, images: Tensor, other: Tensors, codes: Tensors) -> bool:
    features = tokenizer.encode_features(images)
    if not isinstance(features, Tensor):  # a coarser grid's code moves the finer features
        return False
    explained = [a == b for a, b in zip(other, codes, strict=True)]
    length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(32):
        noise = F.normalize(torch.randn(features.shape, generator=generator), dim=1)
        near = parts(tokenizer.quantizer.encode(features + _TIE * length * noise))
        explained = [done | (a == b) for done, a, b in zip(explained, other, near, strict=True)]
    return all(bool(done.all()) for done in explained)


def describe(tokenizer: Tokenizer, graphs: dict[str, Graph]) -> dict[str, Any]:
    """What `export.json` holds."""
    from tokenizers_vq import __version__

    layout = tokenizer.code_layout()
    return {
        "versions": {"tokenizers-vq": __version__, "torch": torch.__version__},
        "fingerprint": tokenizer.fingerprint,
        "image_size": list(tokenizer.config.size),
        "channels": tokenizer.config.channels,
        "layout": layout.to_dict(),
        "inputs": {"encode": "float32 images (B, C, H, W) in [-1, 1]", "decode": "int64 codes (B, *grid[, levels])"},
        "graphs": {name: graph._asdict() for name, graph in graphs.items()},
    }
