"""Published priors to ours: `convert(source, weights, config)`. One published layout a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prior.conditions import ClassConfig
from prior.conversion.base import Book, Converted, Given
from prior.conversion.guess import hint
from prior.conversion.sources import SOURCES, module
from prior.model import Prior, PriorConfig
from prior.sequences import LayoutConfig
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.conversion.checkpoint import read_config, read_tensors
from tokenizers_vq.conversion.keys import fill, joined
from tokenizers_vq.conversion.maskgit import folder_config, weights_file
from tokenizers_vq.folders import lasting_name
from tokenizers_vq.models import load
from tokenizers_vq.quantizers import Quantizer
from tokenizers_vq.tokenizer import Tokenizer

__all__ = ["SOURCES", "Book", "Converted", "Given", "convert"]


def convert(
    source: str,
    weights: str | Path,
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    tokenizer: str | Path | None = None,
    book: Book | None = None,
    label_names: Sequence[str] | None = None,
) -> Prior:
    """A prior, float32 in eval mode, from a published checkpoint.

    `source` names the layout (`SOURCES`), `weights` a file or a folder that holds one, `config` a YAML or JSON file, or
    its content. No file says whose codes it models: `tokenizer` names that tokenizer as `tokenizers_vq.load` takes it;
    without it the prior knows none. `book`: the tokenizer's quantizer in its place, for a network that is fed vectors.
    `label_names`: names of the classes.

    Logits are the reference's. Nothing that a pickle holds is run. Strict: raises `ValueError` naming any missing,
    surplus or misshapen key, or a tokenizer with other codes.
    """
    path, reader = Path(weights), module(source)
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {weights}: give the checkpoint of {source} to convert")
    given = folder_config(path, read_config(config)) or {}
    file = weights_file(path)
    opened = None if tokenizer is None else load(tokenizer)
    layout = None if opened is None else opened.code_layout()
    if opened is not None and book is None and isinstance(opened.quantizer, Quantizer):
        book = Book(opened.config.quantizer, opened.quantizer.state_dict())
    try:
        tensors = read_tensors(file, *SOURCES[source].wrappers)
        converted = reader.read(Given(tensors, given, file, layout, book))
        _check_codes(converted.layout, layout, tokenizer)
        return _prior(converted, file, tokenizer, opened, label_names)
    except ValueError as error:
        other = hint(source, file)
        named = str(error) if str(file) in str(error) else f"{file}: {error}"
        raise ValueError(f"{named}{other}") from None


def _check_codes(layout: CodeLayout, made: CodeLayout | None, tokenizer: str | Path | None) -> None:
    """Raises `ValueError` where the tokenizer's codes cannot be those of the prior; other image sizes can."""
    if made is None:
        return
    flat = [len(grid) == 1 for grid in layout.grids] == [len(grid) == 1 for grid in made.grids][: len(layout.grids)]
    fixed = [grid for grid in layout.grids if len(grid) == 1]
    if (
        layout.levels != made.levels
        or not set(layout.sizes) <= set(made.sizes)
        or not flat
        or not set(fixed) <= set(made.grids)
    ):
        raise ValueError(
            f"the prior's codes are {_words(layout)}, those of the tokenizer {tokenizer} {_words(made)}: give the "
            "tokenizer that it was trained on"
        )


def _words(layout: CodeLayout) -> str:
    grids = " + ".join("x".join(map(str, grid)) for grid in layout.grids)
    sizes = " / ".join(map(str, dict.fromkeys(layout.sizes)))
    return f"{grids}{f' x {layout.levels} levels' if layout.levels > 1 else ''} of {sizes}"


def _prior(
    converted: Converted,
    file: Path,
    tokenizer: str | Path | None,
    opened: Tokenizer | None,
    label_names: Sequence[str] | None,
) -> Prior:
    book, condition = converted.book, converted.condition
    if label_names is not None:
        if not isinstance(condition, ClassConfig):
            raise ValueError(f"{file} is told no class, so that its classes cannot be named: leave label_names out")
        condition = condition.replace(label_names=tuple(label_names))
    config = PriorConfig(
        network=converted.network,
        condition=condition,
        layout=LayoutConfig.of(converted.layout),
        tokenizer=None if tokenizer is None else lasting_name(tokenizer),
        fingerprint=None if opened is None else opened.fingerprint,
        book=None if book is None else book.config,
        **converted.fields,
    )
    tensors = joined(("", "", converted.tensors), ("network.book.", "", {} if book is None else book.state))
    return fill(lambda: Prior(config), tensors, file).eval()
