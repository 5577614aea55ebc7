"""The contract of a quantizer and of its config, the straight-through estimator, and the checks that all share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self

from tokenizers_vq import distributed
from tokenizers_vq.codes import CodeLayout, Codes, Quantized
from tokenizers_vq.config import Config
from tokenizers_vq.quantizers.search import check_finite


class Remedy(NamedTuple):
    """One thing to try where few codes are used."""

    fields: tuple[str, ...]
    """`field=value` of the quantizer's config, all of them together"""
    why: str


class QuantizerFields(Config):
    """Base of a quantizer's config: facts of its kind that recipes and the doctor ask for."""

    kind: str = ""

    @property
    def codebook_size(self) -> int | None:
        """Codes of the stored codebook, the smallest of several; None where codes are not stored."""
        return getattr(self, "num_codes", None)

    def frozen(self) -> str | None:
        """Why it cannot rest while the encoder learns (`train=frozen_codebook`), in one line; None where it can."""
        if self.codebook_size is None:
            return f"a {self.kind} quantizer has no codebook to freeze: give train=all"
        return None

    def remedies(self) -> list[Remedy]:
        """What to try where few of its codes are used, the likeliest first."""
        return []

    def resized(self, grid: tuple[int, ...]) -> Self:
        """The config of a quantizer with the same weights for features of another grid: itself, unless overridden."""
        return self

    def folded(self) -> QuantizerFields:
        """The config of a quantizer of the same codes without what only training needs: itself, unless overridden."""
        return self

    def described(self) -> dict[str, Any]:
        """What the tokenizer's fingerprint is taken of: the fields that are not at their default."""
        return self.to_dict(defaults=False)


def narrower(config: Any) -> list[Remedy]:
    """Fewer dimensions, for a codebook of more than 32."""
    return [Remedy(("dim=8",), "in few dimensions every code is met")] if config.dim > 32 else []


def fewer_codes(config: Any) -> list[Remedy]:
    """An eighth of the codes, for a codebook of more than 1024."""
    return [Remedy((f"num_codes={config.num_codes // 8}",), "fewer codes")] if config.num_codes > 1024 else []


class Quantizer(nn.Module):
    """Features `(B, in_dim, *grid)` -> codes -> features `(B, dim, *grid)`; float32 inside, whatever the autocast.

    State lives in buffers. `encode` and `lookup` have no state and no noise, in train mode too.

    Quantizers of several levels take others as their books. A book that maps features before it compares them with
    codes says so in `confine`, `encode_confined` and `forward_confined`; all others keep the defaults.
    """

    in_dim: int
    """width of the features that `encode` and `forward` take"""
    dim: int
    """width of a code's vector, which `lookup` gives"""
    training_state: ClassVar[tuple[str, ...]] = ()
    """buffers that neither `encode` nor `lookup` reads; left out of the fingerprint"""
    depth: int = 1
    """levels, groups or scales, of which `partial` takes the first and `addend` one"""
    nested: ClassVar[bool] = False
    """the first of its levels or scales stand for the whole features, only coarser"""
    straight: bool = False
    """as a book: behind `confine` its estimator is the identity, so that the sum of several levels' is the identity"""
    finer: float | tuple[float, ...] = 1.0
    """as a book: what it leaves over, as a share of its codes' range (of each channel's); 1 = a codebook learns it"""
    centre: float | tuple[float, ...] = 0.0
    """as a book: the middle of its codes' range (of each channel's)"""

    @abstractmethod
    def layout(self, grid: tuple[int, ...]) -> CodeLayout:
        """Layout of the codes on a grid. Raises `ValueError` for a grid that this quantizer cannot take."""

    @abstractmethod
    def encode(self, features: Tensor) -> Codes:
        """`(B, in_dim, *grid)` -> int64 codes."""

    @abstractmethod
    def lookup(self, codes: Any) -> Tensor:
        """Codes, as `encode` gives them -> `(B, dim, *grid)`."""

    @abstractmethod
    def forward(self, features: Tensor) -> Quantized:
        """Encode, look up, estimate gradients, compute losses; in train mode one update of the state.

        The stats of a training forward hold at least `perplexity` and, where that is known, `usage`, which the log, the
        warning and the doctor read (`statistics.code_stats`, of codes in a table of K).
        """

    def folded(self) -> Quantizer:
        """A quantizer of the same codes without what only training needs: itself, or a copy of `config.folded()`."""
        return self

    def partial(self, codes: Any, upto: int) -> Tensor:
        """Vectors `(B, dim, *grid)` of the first `upto` levels or scales; of all of them, `lookup`'s bitwise.

        `codes`: as `encode` gives them, the levels or scales behind the first `upto` may be missing. Raises
        `ValueError` for `upto` outside 1 to `depth` and what `lookup` raises.
        """
        self._check_upto(upto)
        return self.lookup(codes)

    def addend(self, codes: Tensor, level: int) -> Tensor:
        """What codes `(B, *grid)` of one level or scale alone (0 = the first) add, float32 `(B, dim, *grid)`.

        The sum of the first n, taken in order, is `partial(codes, n)`, bitwise.
        """
        return self.lookup(codes).float()

    def _check_upto(self, upto: int) -> None:
        if not 1 <= upto <= self.depth:
            raise ValueError(f"upto must lie in 1 to {self.depth}, the levels of this quantizer, got {upto}")

    @property
    def sign_bits(self) -> int | None:
        """Bits of a code, bit i being the sign of channel i; None where codes are no signs, or not all of as many."""
        found = {book.sign_bits for book in self.modules() if isinstance(book, Quantizer) and book is not self}
        return found.pop() if len(found) == 1 else None

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """Weights of the book's `commitment` and `codebook` terms, for quantizers that weigh a sum's; 1 = unnamed."""
        return {}

    def confine(self, features: Tensor) -> Tensor:
        """float32 `(B, in_dim, *grid)` -> `(B, dim, *grid)` in the codes' range, where residuals are taken."""
        return features

    def encode_confined(self, vectors: Tensor) -> Codes:
        """`encode` of what `confine` gave, or of a residual of it."""
        return self.encode(vectors)

    def forward_confined(self, vectors: Tensor) -> Quantized:
        """`forward` of what `confine` gave, or of a residual of it."""
        return self(vectors)


def straight_through(quantized: Tensor, features: Tensor) -> Tensor:
    """Value of `quantized`, bitwise; gradient of the identity on `features` (arXiv 1308.3432)."""
    return quantized.detach() + (features - features.detach())


def join_levels(codes: Sequence[Tensor]) -> Tensor:
    """One `(B, *grid)` a level -> `(B, *grid, L)`; of one level, `(B, *grid)`."""
    return torch.stack(list(codes), dim=-1) if len(codes) > 1 else codes[0]


def split_levels(codes: Tensor, levels: int) -> Sequence[Tensor]:
    """The inverse of `join_levels`. Raises `ValueError` for another number of levels."""
    if levels > 1 and codes.shape[-1] != levels:
        raise ValueError(f"codes must have {levels} levels last, got {tuple(codes.shape)}")
    return codes.unbind(-1) if levels > 1 else [codes]


def training_buffers(module: nn.Module) -> set[str]:
    """Names of a module's buffers that only training reads, those of parts inside included."""
    return {
        f"{name}.{buffer}" if name else buffer
        for name, part in module.named_modules()
        for buffer in getattr(part, "training_state", ())
    }


def check_codes(codes: Tensor, num_codes: int) -> None:
    """Raises `ValueError` (values: eager only) for codes that are no integers in [0, K), where a GPU would abort."""
    if codes.is_floating_point():
        raise ValueError(f"codes must be int64 in [0, {num_codes}), got {codes.dtype}; convert with .long()")
    if codes.numel() and not torch.compiler.is_compiling():
        low, high = (int(bound) for bound in codes.aminmax())
        if low < 0 or high >= num_codes:
            raise ValueError(f"codes must lie in [0, {num_codes}), got values from {low} to {high}")


def check_in_all_processes(features: Tensor) -> None:
    """Raises `ValueError` in every process where one process' features are NaN or infinite.

    One process' error would stop it alone, and leave the others waiting in the next sum.
    """
    if distributed.world_size() > 1:
        bounds = 0 * torch.stack(torch.aminmax(features.detach()))
        check_finite(distributed.sum(bounds), "features to quantize hold")


def check_features(features: Tensor, in_all_processes: bool) -> None:
    """Raises `ValueError` (eager only) for NaN or infinity, in this process' features or in those of all."""
    if torch.compiler.is_compiling():
        return
    if in_all_processes:
        check_in_all_processes(features)
    if features.numel():
        check_finite(features.detach(), "features to quantize hold")


def as_given(quantized: Tensor, features: Tensor) -> Tensor:
    """Float32 `quantized` in the dtype of the features that came in; float32 under autocast, where layers cast."""
    return quantized if torch.is_autocast_enabled(features.device.type) else quantized.to(features.dtype)


def as_stored(quantizer: nn.Module, quantized: Tensor, features: Tensor) -> Tensor:
    """Float32 `quantized` in the dtype that the quantizer's vectors are stored in; where none are, `as_given`."""
    tensors = [*quantizer.parameters(), *quantizer.buffers()]
    stored = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)
    return as_given(quantized, features) if stored is None else quantized.to(stored)
