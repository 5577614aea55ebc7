"""What draws images for the server, as the server sees it; packages that have priors provide one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from tokenizers_vq.serving.schemas import Inpaint, Sample


class Drawn(NamedTuple):
    """Images `(n, C, H, W)` in [-1, 1] and their codes `(n, N)`."""

    images: Tensor
    codes: Tensor


class Prepared(NamedTuple):
    """A request that was checked, ready to be drawn."""

    together: Hashable
    """requests that are equal in it may be drawn together"""
    n: int
    ask: Any


Decoder = Callable[[str, str], bytes]
"""from base64 and what it stands for, to the bytes of a file; raises one line"""


class Drawer(Protocol):
    """A prior with its tokenizer."""

    def about(self) -> dict[str, Any]:
        """What `/health` says of it."""

    def prepare(self, ask: Sample | Inpaint, content: Decoder, max_pixels: int) -> Prepared:
        """Check a request, in any thread. Raises `ValueError` of one line. Opens no path that the request names."""

    def draw(self, prepared: Sequence[Prepared]) -> list[Drawn]:
        """Draw requests that go together, in the model's thread. Raises `ValueError` of one line."""
