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
    fields = {name: getattr(quantizer, name) for name in type(quantizer).model_fields}
    advice = []

    def advise(why: str, *values: str) -> None:
        advice.append(Advice(tuple(f"model.{path}.{value}" for path in paths for value in values), why))

    narrow = ("dim=8",) if fields.get("dim", 0) > 32 else ()
    if fields.get("distance") == "euclidean":
        advise("few, L2-normalised dimensions let every code be met", "distance=cosine", *narrow)
    elif "kl_weight" in fields:  # codes are told by logits, not by where they lie
        advise("pulls the choice of codes towards an even one", f"kl_weight={3 * fields['kl_weight'] or 0.01:g}")
    elif narrow:
        advise("in few dimensions every code is met", *narrow)
    if "revive_after" in fields and fields["revive_after"] is None:
        advise("moves dead codes to features", "revive_after=100")
    if "kmeans_batches" in fields and not fields["kmeans_batches"]:
        advise("begins with codes where the features are", "kmeans_batches=100")
    if "entropy_weight" in fields and not fields["entropy_weight"]:
        advise("rewards even use", "entropy_weight=0.1")
    num_codes = fields.get("num_codes", 0)
    if isinstance(num_codes, int) and num_codes > 1024:
        advise("fewer codes", f"num_codes={num_codes // 8}")
    if fields.get("bits", 0) > 8:
        advise("fewer codes", f"bits={fields['bits'] - 3}")
    if quantizer.kind == "fsq" and len(fields["levels"]) > 2:
        advise("fewer codes", f"levels={list(fields['levels'][:-1])}")
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
