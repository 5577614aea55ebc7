"""What to try where a run is ill: overrides of its recipe, each with its reason; and how schedules run."""

from __future__ import annotations

import shlex
from typing import Any, NamedTuple, cast

import yaml

from tokenizers_vq.config import Config, ConfigError, Schedule, ScheduleChain, ScheduleCurve, schedule_value
from tokenizers_vq.training.recipe import Recipe


class Advice(NamedTuple):
    """One thing to try."""

    overrides: tuple[str, ...]
    """`path=value`, as `tvq train` takes them; all of them together"""
    why: str = ""

    def __str__(self) -> str:
        """As a shell takes it, the reason behind."""
        return " ".join(shlex.quote(override) for override in self.overrides) + (f"  ({self.why})" if self.why else "")


def against_collapse(recipe: Recipe) -> tuple[Advice, ...]:
    """Advice for a codebook of which little is used."""
    paths = recipe.model.quantizer_paths
    quantizer = next(iter(paths.values()))  # of several, the first speaks for all
    advice = [
        Advice(tuple(f"model.{path}.{field}" for path in paths for field in remedy.fields), remedy.why)
        for remedy in quantizer.remedies()
    ]
    return tuple(advice) or slower(recipe)


def slower(recipe: Recipe) -> tuple[Advice, ...]:
    """Advice for a run that moves too fast."""
    optimizer = recipe.optimizer
    usual = 5e-4 / max(peak_of(optimizer.lr, recipe.steps), 5e-4) if optimizer.kind == "adamw" else 1.0
    advice = [Advice(tuple(_scaled("optimizer.lr", optimizer.lr, min(0.1, usual))))]
    if optimizer.clip is None:
        advice.append(Advice(("optimizer.clip=1.0",), "bounds the step that one bad batch makes"))
    if recipe.precision != "fp32":
        advice.append(Advice(("precision=fp32",)))
    return tuple(advice)


def rate_of_adversary(recipe: Recipe, factor: float) -> Advice:
    """`factor` times the discriminator's learning rate; of the tokenizer's optimizer it first makes a copy."""
    assert recipe.adversary is not None
    own = recipe.adversary.optimizer
    if own is not None:
        return Advice(tuple(_scaled("adversary.optimizer.lr", own.lr, factor)))
    value = float(f"{peak_of(recipe.optimizer.lr, recipe.steps) * factor:.2g}")
    fields: dict[str, Any] = {**recipe.optimizer.to_dict(defaults=False), "lr": value}
    text = yaml.safe_dump(fields, default_flow_style=True, sort_keys=False, width=10_000).strip()
    return Advice((f"adversary.optimizer={text}",), "an optimizer of its own")


def spectral_norm(recipe: Recipe) -> list[Advice]:
    """Advice to give the discriminator, or the one inside its wrappers, spectral norm where it can have it."""
    assert recipe.adversary is not None
    path, config = "adversary.discriminator", cast(Config, recipe.adversary.discriminator)
    while isinstance(inner := getattr(config, "discriminator", None), Config):
        path, config = f"{path}.discriminator", inner
    try:
        has = "norm" not in type(config).model_fields or config.replace(norm="spectral") == config
    except ConfigError:  # it has other norms
        return []
    return [] if has else [Advice((f"{path}.norm=spectral",), "bounds its slope everywhere")]


def _scaled(path: str, schedule: Schedule, factor: float) -> list[str]:
    """Overrides that make the highest values of a schedule `factor` of what they are."""
    if isinstance(schedule, ScheduleChain):
        return [x for i, part in enumerate(schedule.parts) for x in _scaled(f"{path}.parts.{i}", part, factor)]
    if isinstance(schedule, ScheduleCurve):
        top = max(schedule.begin, schedule.end)
        return [f"{path}.{n}={top * factor:.2g}" for n in ("begin", "end") if getattr(schedule, n) == top]
    return [f"{path}={schedule * factor:.2g}"]


def _corners(schedule: Schedule, steps: int) -> list[int]:
    """Steps of the run between which a schedule moves one way."""
    curves = schedule.parts if isinstance(schedule, ScheduleChain) else (schedule,)
    bounds = {int(b) + d for c in curves if isinstance(c, ScheduleCurve) for b in c.over for d in (-1, 0, 1)}
    return sorted({0, steps - 1} | {bound for bound in bounds if 0 <= bound < steps})


def peak_of(schedule: Schedule, steps: int) -> float:
    """The highest value that a schedule takes in the run."""
    return max(schedule_value(schedule, step) for step in _corners(schedule, steps))


def zero_from(schedule: Schedule, steps: int) -> int | None:
    """The corner from which a schedule stays under a thousandth of its peak to the end of the run; None = never."""
    limit, since = 1e-3 * max(peak_of(schedule, steps), 0.0), None
    for step in _corners(schedule, steps):
        if abs(schedule_value(schedule, step)) > limit:
            since = None
        elif since is None:
            since = step
    return since


def written(schedule: Schedule) -> str:
    """A schedule as a recipe writes it."""
    return f"{schedule:g}" if isinstance(schedule, (int, float)) else str(schedule.to_dict())
