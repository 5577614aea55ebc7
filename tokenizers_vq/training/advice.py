"""What to try where a run is ill: overrides of its recipe, each with its reason; and how schedules run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from tokenizers_vq.config import Config, ConfigError, Schedule, ScheduleChain, ScheduleCurve, schedule_value
from tokenizers_vq.training.recipe import AdversaryConfig, Recipe


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


def discriminators_of(adversary: AdversaryConfig) -> Iterator[tuple[str, Any]]:
    """Every discriminator of a recipe with its path, wrappers before what they hold."""
    yield from _inside("adversary.discriminator", adversary.discriminator)


def _inside(path: str, config: Any) -> Iterator[tuple[str, Any]]:
    yield path, config
    if isinstance(inner := getattr(config, "discriminator", None), Config):
        yield from _inside(f"{path}.discriminator", inner)
    for i, member in enumerate(getattr(config, "discriminators", ())):
        yield from _inside(f"{path}.discriminators.{i}", member)


def spectral_norm(recipe: Recipe) -> list[Advice]:
    """Advice to give each discriminator that looks at images itself spectral norm, where it can have it."""
    assert recipe.adversary is not None
    return [
        Advice((f"{path}.norm=spectral",), "bounds its slope everywhere")
        for path, config in discriminators_of(recipe.adversary)
        if _lacks_spectral_norm(config)
    ]


def _lacks_spectral_norm(config: Any) -> bool:
    try:
        return "norm" in type(config).model_fields and config.replace(norm="spectral") != config
    except ConfigError:  # it has other norms
        return False


def slope_penalty(recipe: Recipe, instead: str | None = None) -> list[Advice]:
    """Advice to bound the discriminator's slope at images, with the norms that this needs.

    Nothing where there is such a penalty, or another regulariser that is not the one to be taken out: `instead`.
    """
    assert recipe.adversary is not None
    parts = list(discriminators_of(recipe.adversary))
    if (recipe.adversary.regularisers and instead is None) or any(config.kind == "minibatch" for _, config in parts):
        return []
    mixing = [path for path, config in parts if getattr(config, "norm", None) in ("batch", "virtual")]
    kind = "r1" if instead is None else "gradient_penalty"
    place = "adversary.regularisers=[{kind: r1}]" if instead is None else f"{instead}={{kind: {kind}}}"
    why = "bounds its slope at the images" if instead is None else "bounds its slope and leaves its weights free"
    return [Advice((place, *(f"{path}.norm=none" for path in mixing)), why)]


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
