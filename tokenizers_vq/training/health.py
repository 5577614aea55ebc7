"""What a run's log says is wrong with it: pure functions of the recipe and the lines of log.jsonl.

The thresholds are set on runs that went well: none of them may be found ill, at no moment of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers_vq.config import Schedule, ScheduleChain, ScheduleCurve, schedule_value
from tokenizers_vq.quantizers.statistics import WINDOW
from tokenizers_vq.training.advice import Advice, against_collapse, peak_of, slower, written, zero_from
from tokenizers_vq.training.balance import UNTRAINED, WINS, adversarial, trained_for
from tokenizers_vq.training.findings import (
    ENOUGH,
    Finding,
    Line,
    gap,
    mean,
    median,
    recent_of,
    share,
    values,
    when,
    windows,
)
from tokenizers_vq.training.recipe import Recipe


def diagnose(recipe: Recipe, lines: Sequence[Line]) -> list[Finding]:
    """Everything wrong that `lines` (of log.jsonl, rising in step) and `recipe` show; empty for a healthy run."""
    stops = [line for line in lines if "stopped" in line]
    lines = [line for line in lines if "stopped" not in line]
    done = int(lines[-1]["step"]) if lines else 0
    findings = [_stopped(recipe, stop) for stop in stops]
    findings += [*_zero_weights(recipe), *_zero_learning_rates(recipe)]
    if recipe.adversary is not None:
        findings += _never_started(recipe, lines, done)
    if lines and recipe.adversary is not None:
        findings += adversarial(recipe, lines)
    if lines:  # what comes first is often the cause of what follows
        findings += [
            *_too_fast(recipe, lines, any(finding.what == WINS for finding in findings)),
            *_codebook(recipe, lines),
            *_vanishing(recipe, lines),
        ]
    return findings


def before_the_start(recipe: Recipe) -> list[str]:
    """What is wrong with a recipe before any step, a line each: weights and rates at 0, a discriminator too late."""
    return [
        f"this recipe will not train as meant: {finding.what} ({finding.evidence}); try {finding.advice[0]}"
        for finding in diagnose(recipe, [])
    ]


def summary(recipe: Recipe, lines: Sequence[Line]) -> dict[str, float]:
    """The figures that a diagnosis looks at, as means over the recent lines."""
    lines = [line for line in lines if "stopped" not in line]
    found = {"loss at first": float(lines[0]["reconstruction"])} if lines else {}
    named = {
        "loss": "reconstruction",
        "usage": "quantizer/usage",
        "perplexity": "quantizer/perplexity",
        "gradient": "gradient/tokenizer",
        "learning rate": "lr/tokenizer",
        "discriminator": "discriminator",
        "logits apart": "",
    }
    recent = recent_of(lines)
    for name, figure in named.items():
        if figure:  # at first every code counts as used
            given = values([line for line in recent if name != "usage" or _filled(recipe, line["step"])], figure)
        else:
            given = [gap(line) for line in recent if "discriminator" in line]
        if given:
            found[name] = mean(given)
    sides = [values(recent, f"adversary/accuracy_{side}") for side in ("real", "fake")]
    if all(sides):
        found["discriminator is right"] = mean([mean(side) for side in sides])
    if recipe.adversary is not None and (weights := values(recent, "adversary/adaptive")):
        top = 0.999 * recipe.adversary.max_adaptive
        found["adaptive weight at its clamp"] = share(weights, lambda weight: weight >= top)
    return found


def _filled(recipe: Recipe, done: int) -> bool:
    """Whether the quantizer has seen a window of updates, one a micro-batch; before that, every code counts as used."""
    return done * recipe.accumulate >= WINDOW


def looks_at_usage(recipe: Recipe, done: int) -> bool:
    """Whether the usage is looked at after `done` steps: at 256, twice that, ... and every 4096; no state to resume."""
    return done >= WINDOW and _filled(recipe, done) and done % min(4096, 1 << (done.bit_length() - 1)) == 0


def usage_warning(recipe: Recipe, done: int, usage: float) -> list[str]:
    """A line for the person where `usage`, a share of the codes, lies under the recipe's `warn_usage`."""
    if usage >= recipe.warn_usage:
        return []
    tries = "; or ".join(" ".join(advice.overrides) for advice in against_collapse(recipe))
    return [
        f"step {done}: only {usage:.0%} of the codes were used in the last {WINDOW} updates; for the next run try "
        f"{tries} (warn_usage=0 says no more of it)"
    ]


def _stopped(recipe: Recipe, stop: Line) -> Finding:
    reason, when = str(stop["stopped"]), f"step {stop['step']}"
    if "NaN or infinite" not in reason:
        return Finding("the run stopped on an error", when, reason, ())
    return Finding("the learning rate is too high: the run became NaN or infinite", when, reason, slower(recipe))


def _zero_weights(recipe: Recipe) -> list[Finding]:
    weights: dict[str, tuple[str, Schedule]] = {
        f"losses.{i}.weight": (term.kind, term.weight) for i, term in enumerate(recipe.losses)
    }
    weights |= {f"quantizer_losses.{name}": (name, factor) for name, factor in recipe.quantizer_losses.items()}
    if recipe.adversary is not None:
        weights["adversary.weight"] = ("adversarial", recipe.adversary.weight)
        for i, regulariser in enumerate(recipe.adversary.regularisers):
            weights[f"adversary.regularisers.{i}.weight"] = (regulariser.kind, regulariser.weight)
    return [
        Finding(
            f"the {kind} loss has weight 0",
            f"all {recipe.steps} steps",
            f"{path} is {written(weight)}",
            (Advice((f"{path}=1.0",), "or take the term out: so it trains nothing"),),
        )
        for path, (kind, weight) in weights.items()
        if zero_from(weight, recipe.steps) == 0
    ]


def _zero_learning_rates(recipe: Recipe) -> list[Finding]:
    rates = {"optimizer": recipe.optimizer}
    if recipe.adversary is not None and recipe.adversary.optimizer is not None:
        rates["adversary.optimizer"] = recipe.adversary.optimizer
    findings = []
    for path, optimizer in rates.items():
        since = zero_from(optimizer.lr, recipe.steps)
        if since is None or since > 0.9 * recipe.steps:  # what falls to 0 at the end is meant to
            continue
        advice = Advice((f"{path}.lr=1e-4",))
        if since and isinstance(optimizer.lr, (ScheduleCurve, ScheduleChain)):
            last = optimizer.lr.parts[-1] if isinstance(optimizer.lr, ScheduleChain) else optimizer.lr
            where = f".parts.{len(optimizer.lr.parts) - 1}" if isinstance(optimizer.lr, ScheduleChain) else ""
            advice = Advice((f"{path}.lr{where}.over=[{last.over[0]}, 1.0]",), "lasts to the end of the run")
        findings.append(
            Finding(
                f"the learning rate is 0: {path}.lr",
                f"steps {since} to {recipe.steps}",
                f"{path}.lr is {written(optimizer.lr)}: {1 - since / recipe.steps:.0%} of the run learn nothing",
                (advice,),
            )
        )
    return findings


def _never_started(recipe: Recipe, lines: Sequence[Line], done: int) -> list[Finding]:
    adversary = recipe.adversary
    assert adversary is not None
    middle = Advice(("adversary.start=0.5",))
    if adversary.start == "auto":
        impossible = 2 * adversary.window >= recipe.steps
        if any("discriminator" in line for line in lines) or not (impossible or done >= recipe.steps):
            return []
        evidence = f"start=auto compares windows of {adversary.window} steps"
        if impossible:
            evidence += f", of which {recipe.steps} steps do not hold two and training after them"
        else:
            evidence += f"; the loss fell by {adversary.threshold:.1%} or more in each"
        other = Advice((f"adversary.window={max(1, recipe.steps // 10)}",))
        if not impossible:
            other = Advice((f"adversary.threshold={5 * adversary.threshold:g}",))
        return [Finding("no discriminator ever started", f"step {done}", evidence, (middle, other))]
    start, warmup = int(adversary.start), int(adversary.warmup)
    if start + warmup < recipe.steps:
        return []
    what = "no discriminator ever starts" if start >= recipe.steps else "the tokenizer never sees the discriminator"
    evidence = f"adversary.start {start} + adversary.warmup {warmup} is not before the end, step {recipe.steps}"
    return [Finding(what, f"all {recipe.steps} steps", evidence, (middle, Advice(("adversary.warmup=0.05",))))]


def _codebook(recipe: Recipe, lines: Sequence[Line]) -> list[Finding]:
    recent = [line for line in recent_of(lines) if _filled(recipe, line["step"]) and "quantizer/usage" in line]
    if not recent:
        return []
    usage, perplexity = (mean(values(recent, f"quantizer/{name}")) for name in ("usage", "perplexity"))
    sizes = [config.codebook_size for config in recipe.model.quantizer_paths.values()]
    codes = None if None in sizes else min(size for size in sizes if size is not None)
    ill = usage < recipe.warn_usage
    if codes is not None and perplexity < 0.1 * codes:  # what a batch of few tokens allows is asked only then
        ill = ill or perplexity < 0.1 * min(codes, _tokens(recipe))
    if not ill:
        return []
    evidence = f"{usage:.1%} of the codes used in the last {WINDOW} updates, perplexity {perplexity:.1f} a batch"
    if codes is not None:
        evidence += f", of {codes} codes"
    oldest = values(recent, "quantizer/oldest")
    if oldest and max(oldest) >= WINDOW:
        evidence += f"; the oldest unused for {max(oldest):.0f} updates"
    # Revival alone keeps usage high: a moved code is used once or twice.
    what = "the codebook collapsed" if usage < recipe.warn_usage else "few codes carry a batch"
    return [Finding(what, when(recent), evidence, against_collapse(recipe))]


def _tokens(recipe: Recipe) -> int:
    from tokenizers_vq.devices import without_memory

    with without_memory():
        return recipe.model.build().code_layout().length * recipe.batch_size // recipe.accumulate


def _too_fast(recipe: Recipe, lines: Sequence[Line], wins: bool) -> list[Finding]:
    terms = [term.kind for term in recipe.losses if values(lines[-1:], term.kind)]
    falls = {name: [mean(part) for part in windows(values(lines, name))] for name in terms}
    if not terms or any(len(means) < 2 for means in falls.values()):
        return []
    evidence = []
    rises = [(means[-1] - min(means), means[0] - min(means), abs(min(means))) for means in falls.values()]
    # Every term: where one falls, the others pay for it.
    if all(rise > max(0.5 * fall, 0.3 * low) for rise, fall, low in rises):
        evidence += [f"{name} rose from {min(means):.4g} to {means[-1]:.4g}" for name, means in falls.items()]
    norms = [median(part) for part in windows(values(lines, "gradient/tokenizer"))]
    if all(rise > 0.05 * low for rise, _, low in rises) and norms[-1] > 10 * min(norms) > 0:
        evidence.append(f"the gradient's norm grew from {min(norms):.3g} to {norms[-1]:.3g}")
    for name, means in falls.items():
        given = values(lines, name)
        if max(given) > 10 * abs(given[0]) and means[-1] > 0.3 * abs(given[0]):  # not one long since recovered from
            evidence.append(f"{name} leapt from {given[0]:.4g} to {max(given):.4g} and is at {means[-1]:.4g}")
    peak = peak_of(recipe.optimizer.lr, recipe.steps)
    still = all(means[-1] > means[0] - 0.3 * abs(means[0]) for means in falls.values())
    if not evidence and still and recipe.optimizer.kind == "adamw" and peak > 2e-3 and lines[-1]["step"] >= 100:
        evidence += [f"{name} hardly fell, from {means[0]:.4g} to {means[-1]:.4g}" for name, means in falls.items()]
        evidence.append(f"AdamW at a rate of {peak:g}, where 1e-5 to 1e-3 are usual")
    if not evidence:
        return []
    what = "the loss rises, with a discriminator that wins" if wins else "the learning rate is too high"
    return [Finding(what, when(recent_of(lines)), "; ".join(evidence), slower(recipe))]


def _vanishing(recipe: Recipe, lines: Sequence[Line]) -> list[Finding]:
    recent, step = recent_of(lines), int(lines[-1]["step"]) - 1
    paths: dict[str, tuple[str, Schedule]] = {
        term.kind: (f"losses.{i}.weight", term.weight) for i, term in enumerate(recipe.losses)
    }
    if recipe.adversary is not None and trained_for(lines, recent[-1]) >= UNTRAINED:
        paths["generator"] = ("adversary.weight", recipe.adversary.weight)
    seen = {name: values(recent, f"gradient/{name}") for name in paths if f"gradient/{name}" in recent[-1]}
    norms = {name: mean(given) for name, given in seen.items() if len(given) >= ENOUGH}
    largest = max(norms.values(), default=0.0)
    findings = []
    for name, norm in norms.items():
        path, weight = paths[name]
        value = schedule_value(weight, step)
        if value and norm <= 1e-3 * largest:
            evidence = f"norm {norm:.3g} at the decoder's output, where the largest of the others has {largest:.3g}"
            larger = value * min(1e3, 0.1 * largest / norm) if norm else 10 * value
            advice = Advice((f"{path}={larger:.2g}",), "or take it out")
            findings.append(Finding(f"the {name} loss has no gradient to speak of", when(recent), evidence, (advice,)))
    return findings
