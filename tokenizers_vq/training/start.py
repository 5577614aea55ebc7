"""When the discriminator starts: at a step, or once the reconstruction loss has stopped falling."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from tokenizers_vq import distributed


class DiscriminatorStart(nn.Module):
    """D trains from `start`, the tokenizer sees it `warmup` steps later.

    `auto`: windows of `window` steps follow one another; D starts after the first whose mean reconstruction loss lies
    less than `threshold` (a share) under the mean of the window before. The running means are buffers, reduced over
    processes, so that a resume is exact and processes agree. The
    decision is read once a window.
    """

    started: Tensor
    total: Tensor
    count: Tensor
    before: Tensor

    def __init__(
        self, start: Literal["auto"] | int, warmup: int = 0, window: int = 500, threshold: float = 0.01
    ) -> None:
        super().__init__()
        self.automatic, self.warmup, self.window, self.threshold = start == "auto", warmup, window, threshold
        self.register_buffer("started", torch.tensor(-1 if start == "auto" else int(start)))
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("before", torch.tensor(float("nan")))
        self._micro: list[Tensor] = []
        self._known: tuple[int, int] | None = None
        self.register_load_state_dict_post_hook(_forget)

    @property
    def _on_host(self) -> tuple[int, int]:
        """`started` and `count` as numbers, read once: an accelerator's would be waited for at every step."""
        if self._known is None:
            self._known = int(self.started), int(self.count)
        return self._known

    def trains_discriminator(self, step: int) -> bool:
        """Whether D takes part in this step."""
        return 0 <= self._on_host[0] <= step

    def faces_generator(self, step: int) -> bool:
        """Whether the tokenizer gets a gradient from D in this step."""
        return self.trains_discriminator(step) and step >= self._on_host[0] + self.warmup

    def observe(self, loss: Tensor) -> None:
        """Note one micro-batch's reconstruction loss."""
        if self.automatic and self._on_host[0] < 0:
            self._micro.append(loss.float())

    def after_step(self, step: int) -> list[str]:
        """Close the step: decide at the end of a window. Returns messages for the person."""
        if self._micro:
            self.total += distributed.mean(torch.stack(self._micro).mean())
            started, count = self._on_host
            self.count += 1
            self._known = started, count + 1
            self._micro.clear()
            if count + 1 == self.window:
                return self._close(step)
        if not self.automatic and step + 1 == self._on_host[0] + self.warmup > 0:
            return [f"step {step + 1}: the tokenizer now sees the discriminator"]
        return []

    def _close(self, step: int) -> list[str]:
        mean = self.total / self.count
        flat = bool((self.before - mean) / self.before.abs() < self.threshold)  # false at the first window's NaN
        self.before.copy_(mean)
        self.total.zero_()
        self.count.zero_()
        self._known = None
        if not flat:
            return []
        self.started.fill_(step + 1)
        self._known = None
        return [
            f"step {step + 1}: the discriminator starts (the reconstruction loss fell by under {self.threshold:.1%} "
            f"over {self.window} steps); the tokenizer sees it from step {step + 1 + self.warmup}"
        ]


def _forget(start: nn.Module, keys: object) -> None:
    start._known = None  # type: ignore[assignment]  # of another state
