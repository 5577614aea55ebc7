"""What data say of all their images at once, which is looked at before a step is made: classes, captions."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokenizers_vq.data.columns import Columns


class Told(NamedTuple):
    """Of the N images of a source, in its order."""

    labels: Tensor
    """`(N,)` int64, -1 where an image has none"""
    captions: list[tuple[str, ...]] | None
    """`("...",)` of each image that has a caption, `()` of the others; None where the data have no captions at all"""


def labels_of(column: Any, columns: Columns) -> Tensor:
    """The classes of an Arrow column without nulls, as `columns` number them."""
    encoded = column.combine_chunks().dictionary_encode()
    numbers = [columns.number(label) for label in encoded.dictionary.to_pylist()]
    places = np.asarray(encoded.indices, dtype=np.int64)
    return torch.from_numpy(np.asarray(numbers, dtype=np.int64)[places])


def captions_of(column: Any) -> list[tuple[str, ...]]:
    """Of an Arrow column of texts or lists of them: which rows hold one that is not blank."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found: list[tuple[str, ...]] = []
    for chunk in column.chunks:
        nested = pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type)
        texts = chunk.flatten() if nested else chunk
        said = np.asarray(pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(texts), ""), False))
        rows = np.zeros(len(chunk), dtype=bool)
        rows[np.asarray(pc.list_parent_indices(chunk))[said] if nested else said] = True
        found += [("...",) if row else () for row in rows.tolist()]
    return found
