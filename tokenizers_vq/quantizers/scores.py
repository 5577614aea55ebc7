"""What a search decides by: scores in float64, each pair by itself, and how far a float32 product may be off them.

The product scores codes about their mean, rows `[x, 1]` times weights `[-c, |c|^2 / 2]`; its rounding is bounded after
Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Score = Literal["euclidean", "cosine", "dot"]


def wide_dtype(x: Tensor) -> torch.dtype:
    """float64; float32 on MPS, which has no float64."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def normalised(x: Tensor) -> Tensor:
    """Rows of unit length; a zero vector stays zero."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.where(norm > 0, 1)


def widened(x: Tensor, score: Score) -> Tensor:
    """In float64, normalised for `cosine`."""
    wide = x.to(wide_dtype(x))
    return normalised(wide) if score == "cosine" else wide


def costs_of(exact: Tensor, codes: Tensor, score: Score) -> Tensor:
    """`(..., n, D)`, `(..., k, D)` -> `(..., n, k)`: distances, or dot products negated.

    Each pair is computed by itself, not as part of a matrix product, so that equal codes tie exactly.
    """
    codes = widened(codes, score)
    if score == "euclidean":
        return torch.cdist(exact, codes, compute_mode="donot_use_mm_for_euclid_dist")
    return (exact[..., :, None, :] * codes[..., None, :, :]).sum(-1).neg()


def pair_costs(x: Tensor, codes: Tensor, score: Score) -> Tensor:
    """`(P, D)`, `(P, D)` -> `(P,)` in float64: squared distances, or dot products negated."""
    x, codes = x.to(wide_dtype(x)), codes.to(wide_dtype(x))
    if score == "euclidean":
        return _sum((x - codes).square())
    if score == "cosine":
        lengths = [_sum(part.square()).sqrt()[:, None] for part in (x, codes)]
        x, codes = (part / length.where(length > 0, 1) for part, length in zip((x, codes), lengths, strict=True))
    return -_sum(x * codes)


def _sum(terms: Tensor) -> Tensor:
    """`(P, D)` -> `(P,)`, by halves: in one order whatever P, so that equal codes tie exactly. A GPU's sum is not."""
    while terms.shape[1] > 1:
        half = -(-terms.shape[1] // 2)
        folded = terms[:, :half].clone()
        folded[:, : terms.shape[1] - half] += terms[:, half:]
        terms = folded
    return terms[:, 0]


def as_rows(x: Tensor, centre: Tensor | None, score: Score, out: Tensor) -> Tensor:
    """`(n, D)` -> `out` `(n, D + 1)` for the product, the last column 1."""
    out[:, -1] = 1
    if centre is not None:
        torch.sub(x.to(out.dtype), centre, out=out[:, :-1])
    else:
        _fill(out[:, :-1], x, score)
    return out


def _fill(out: Tensor, x: Tensor, score: Score) -> None:
    """`x` in the dtype of `out`; normalised for `cosine`, a few at a time, as that takes float64."""
    if score != "cosine":
        out.copy_(x)
        return
    for some, place in zip(x.split(256), out.split(256), strict=True):
        place.copy_(widened(some, score))


def as_weights(codes: Tensor, centre: Tensor | None, score: Score, out: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """`(k, D)` -> rows `[-c, |c|^2 / 2]` or `[-c, 0]`, up to a multiple with rows that never win; and norms `|c|`."""
    count = len(codes)
    out = out[: -(-count // multiple) * multiple]
    out[count:].zero_()[:, -1] = torch.inf
    rows, last = out[:count, :-1], out[:count, -1]
    if centre is not None:
        torch.sub(centre, codes.to(out.dtype), out=rows)
    else:
        _fill(rows, codes, score)
        rows.neg_()
    norms = torch.linalg.vector_norm(rows, dim=1)
    last.copy_(norms.square().mul_(0.5) if score == "euclidean" else torch.zeros_like(norms))
    return out, norms


def product_error(
    length: Tensor, reach: Tensor, width: int, dtype: torch.dtype, score: Score, *, reduced: bool | None = None
) -> Tensor:
    """Most that the product's score of a code no longer than `reach` is off, for vectors of `length`.

    `reduced`: whether the product may be one in TF32 or bfloat16; unset, what the user has allowed on the CPU.
    """
    steep, flat = error_terms(reach, width, dtype, score, reduced=reduced)
    return length * steep + flat


def error_terms(
    reach: Tensor, width: int, dtype: torch.dtype, score: Score, *, reduced: bool | None = None
) -> tuple[Tensor, Tensor]:
    """Two numbers for each length of a code: the error is the first times the vector's length, plus the second.

    As columns of the product they make its scores lower bounds: the room for their own rounding is in them.
    """
    reduced = allows_reduced() if reduced is None else reduced
    unit = 2.0**-8 if reduced and dtype == torch.float32 else torch.finfo(dtype).eps / 2
    share = (width + 12) * unit
    share, tiny = share * (1 + share), torch.finfo(dtype).tiny / unit
    reach = reach + (width * torch.finfo(dtype).tiny) ** 0.5  # squares below tiny are lost from norms
    flat = tiny * (1 + reach)
    return share * (reach + tiny), share * (flat + reach * reach if score == "euclidean" else flat)


def allows_reduced() -> bool:
    """Whether float32 products on the CPU may be ones in TF32 or bfloat16."""
    try:
        allowed = torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # it was said in torch's newer way, and is no longer read in the older
        return True
    newer = getattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision", "none")
    return allowed or newer not in ("none", "ieee")
