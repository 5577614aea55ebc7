"""Scalar buffers of a model that a recipe's schedules set at every step: a temperature, a share of random orders."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from tokenizers_vq.config import Schedule, nearest, schedule_value


def check(schedules: Mapping[str, Schedule], model: nn.Module, noun: str) -> None:
    """Raises `ValueError` for a name that is no scalar buffer of the model, which is a `noun`."""
    buffers = model.named_buffers()
    scalars = [name for name, buffer in buffers if buffer.ndim == 0 and buffer.is_floating_point()]
    for name in schedules:
        if name not in scalars:
            raise ValueError(f"anneal: this {noun} has no scalar buffer '{name}'{nearest(name, scalars)}")


def move(schedules: Mapping[str, Schedule], model: nn.Module, step: int) -> None:
    """Set the buffers to their values at an optimizer step."""
    for name, schedule in schedules.items():
        model.get_buffer(name).fill_(schedule_value(schedule, step))
