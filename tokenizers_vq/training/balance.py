"""What a log says of the game between tokenizer and discriminator: the doctor's findings about an adversary.

Every objective is known by its own `chance` and `best`; no kind of it is named.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers_vq.training.advice import Advice, discriminators_of, rate_of_adversary, slope_penalty, spectral_norm
from tokenizers_vq.training.findings import ENOUGH, Finding, Line, gap, mean, recent_of, share, values, when, windows
from tokenizers_vq.training.recipe import AdversaryConfig, Recipe

WINS = "the discriminator wins"
EQUAL = "the pair discriminator wins by equality"
GROWS = "the gap of the discriminator's logits keeps growing"

UNTRAINED = 100
"""steps in which a new discriminator has hardly a slope: the smallness of its gradient says nothing yet"""


def adversarial(recipe: Recipe, lines: Sequence[Line]) -> list[Finding]:
    """Everything that is wrong with the adversary of a recipe; `lines` of the log, rising in step, one at least."""
    found = [*_discriminator(recipe, lines), *_clipped(recipe, lines), *_adaptive_weight(recipe, lines)]
    if not any(finding.what in (WINS, EQUAL) for finding in found):
        found += _growing(recipe, lines)
    return [*found, *_probability(recipe, lines), *_bottleneck(recipe, lines)]


def _adversary(recipe: Recipe) -> AdversaryConfig:
    assert recipe.adversary is not None
    return recipe.adversary


def trained_for(lines: Sequence[Line], line: Line) -> int:
    """Steps from the discriminator's first of `lines` to this one; 0 where it has made none."""
    first = next((each["step"] for each in lines if "discriminator" in each), line["step"])
    return int(line["step"] - first)


def _facing(lines: Sequence[Line]) -> list[Line]:
    """Those in which both sides play."""
    return [line for line in lines if "discriminator" in line and "generator" in line]


def _discriminator(recipe: Recipe, lines: Sequence[Line]) -> list[Finding]:
    adversary, recent = _adversary(recipe), _facing(recent_of(lines))
    chance = adversary.objective.chance
    if len(recent) < ENOUGH:
        return []
    # Where there is no least loss (Wasserstein's) there is none to have won at.
    best, near = adversary.objective.best, 0.05 * (abs(chance) or 1.0)
    won = best + 0.2 * (chance - best) if math.isfinite(best) else -math.inf
    loss, apart = mean(values(recent, "discriminator")), mean([gap(line) for line in recent])
    evidence = f"its loss is {loss:.3g} ({chance:.3g} = chance); logits {apart:.3g} apart"
    right = [values(recent, f"adversary/accuracy_{side}") for side in ("real", "fake")]
    if all(right):
        evidence += f"; right about {mean(right[0]):.0%} of images and {mean(right[1]):.0%} of reconstructions"
    wins = share(recent, lambda line: line["discriminator"] < won and gap(line) > 0.5) >= 0.8
    if wins or (all(right) and min(map(mean, right)) > 0.99):
        equal = list(_equal_pairs(adversary))
        if equal:
            paths = " and ".join(f"{path}.blur" for path in equal)
            evidence += f"; at {paths} 0 it sees the image itself beside each: what differs from it is fake"
            advice = Advice(tuple(f"{path}.blur=null" for path in equal), "the tokenizer's stride")
            return [Finding(EQUAL, when(recent), evidence, (advice,))]
    if wins:
        return [Finding(WINS, when(recent), evidence, _against_winning(recipe))]
    lost = share(recent, lambda line: abs(line["discriminator"] - chance) < near and abs(gap(line)) < 0.1)
    # Clipped weights give logits of any size, to which only an objective with a chance of its own sets a scale.
    scaled = chance or not values(recent, "adversary/clipped")
    if scaled and lost >= 0.8 and trained_for(lines, recent[0]) >= 200:
        advice_ = (rate_of_adversary(recipe, 3.0), Advice(("adversary.weight=0.1",), "less of its noise"))
        return [Finding("the discriminator is at chance", when(recent), evidence, advice_)]
    return []


def _equal_pairs(adversary: AdversaryConfig) -> Iterator[str]:
    """Paths of pairs whose condition is the image, or so little blurred that it tells as much."""
    for path, config in discriminators_of(adversary):
        if config.kind == "pair" and config.blur is not None and config.blur < 1:
            yield path


def _against_winning(recipe: Recipe) -> tuple[Advice, ...]:
    adversary = _adversary(recipe)
    advice = [rate_of_adversary(recipe, 0.2), *slope_penalty(recipe), *spectral_norm(recipe)]
    if not adversary.adaptive:
        advice.append(Advice(("adversary.adaptive=true",), "balances its gradient with the reconstruction's"))
    if adversary.start == 0:
        advice.append(Advice(("adversary.start=0.25",), "first let the tokenizer learn what any image looks like"))
    return tuple(advice)


def _growing(recipe: Recipe, lines: Sequence[Line]) -> list[Finding]:
    objective, facing = _adversary(recipe).objective, _facing(lines)
    parts = windows(facing)[-4:]
    # A discriminator begins untrained: for some hundred steps its gap grows because it learns.
    if len(parts) < 4 or parts[-1][0]["step"] - facing[0]["step"] < 500:
        return []
    gaps = [mean([gap(line) for line in part]) for part in parts]
    # A gap that grows while reconstructions get better is a discriminator that learns what there is to learn.
    worse = mean(values(parts[-1], "reconstruction")) > 0.98 * mean(values(parts[0], "reconstruction"))
    # An objective without a least loss bounds no gap; with one, half of the way to it must be gone.
    chance, best = objective.chance, objective.best
    far = chance - 0.5 * (chance - best) if math.isfinite(best) else math.inf
    grows = all(after > 1.1 * before > 0 for before, after in itertools.pairwise(gaps))
    if not (grows and worse and mean(values(parts[-1], "discriminator")) < far):
        return []
    evidence = f"from {gaps[0]:.3g} to {gaps[-1]:.3g}, window by window, while reconstructions got no better"
    advice = (*slope_penalty(recipe), rate_of_adversary(recipe, 0.2))
    return [Finding(GROWS, when([parts[0][0], parts[-1][-1]]), evidence, advice)]


def _clipped(recipe: Recipe, lines: Sequence[Line]) -> list[Finding]:
    recent = [line for line in recent_of(lines) if "adversary/clipped" in line]
    if len(recent) < ENOUGH or (part := mean(values(recent, "adversary/clipped"))) <= 0.5:
        return []
    findings = []
    for i, regulariser in enumerate(_adversary(recipe).regularisers):
        if regulariser.kind == "weight_clipping":
            path = f"adversary.regularisers.{i}"
            advice = (
                Advice((f"{path}.limit={5 * regulariser.limit:g}",)),
                *slope_penalty(recipe, path),
            )
            evidence = f"{part:.0%} of them at {path}.limit {regulariser.limit:g}: it knows simple functions alone"
            findings.append(Finding("most weights of the discriminator are clipped", when(recent), evidence, advice))
    return findings


def _adaptive_weight(recipe: Recipe, lines: Sequence[Line]) -> list[Finding]:
    recent = [line for line in recent_of(lines) if "adversary/adaptive" in line]
    if len(recent) < ENOUGH or trained_for(lines, recent[-1]) < UNTRAINED:
        return []
    top = _adversary(recipe).max_adaptive
    clamped = share(recent, lambda line: line["adversary/adaptive"] >= 0.999 * top)
    rec, adv = (mean(values(recent, f"gradient/last_{name}")) for name in ("reconstruction", "adversary"))
    # A low clamp is often meant (it keeps a losing discriminator small); it is ill where it leaves next to nothing.
    if (clamped >= 0.8 and top * adv < 0.1 * rec) or adv < 1e-4:
        return [
            Finding(
                "the adaptive weight is at its clamp" if clamped >= 0.8 else "the adversary has no gradient",
                when(recent),
                f"in {clamped:.0%} of the lines at max_adaptive {top:g}; at the decoder's last layer the adversary's "
                f"gradient is {adv:.3g}, the reconstruction's {rec:.3g}",
                (
                    Advice((f"adversary.max_adaptive={10 * top:g}",)),
                    Advice(("adversary.adaptive=false", "adversary.weight=0.1")),
                ),
            )
        ]
    return []


def _probability(recipe: Recipe, lines: Sequence[Line]) -> list[Finding]:
    findings = []
    for path, config, recent in _with_state(recipe, lines, "augmented", "p"):
        held = [figure for line in recent for figure in values([line], line["state"])]
        if config.p != "ada" or share(held, lambda p: p >= 0.99) < 0.8:
            continue
        evidence = f"p is {mean(held):.2f} and cannot rise: real logits still have a mean sign above {config.target:g}"
        advice = [rate_of_adversary(recipe, 0.2), *slope_penalty(recipe)]
        if missing := {"color", "translation", "cutout"} - set(config.policy):
            more = ", ".join([*config.policy, *sorted(missing)])
            advice.insert(0, Advice((f"{path}.policy=[{more}]",), "hides more of each image"))
        findings.append(Finding("ADA's probability is at its limit", when(recent), evidence, tuple(advice)))
    return findings


def _bottleneck(recipe: Recipe, lines: Sequence[Line]) -> list[Finding]:
    findings = []
    for path, config, recent in _with_state(recipe, lines, "bottleneck", "multiplier"):
        held = [float(line[line["state"]]) for line in recent]
        kl = mean([float(line[line["state"].replace("multiplier", "kl")]) for line in recent])
        evidence = f"the multiplier is {held[-1]:.3g}; {kl:.3g} nats a position, where the target is {config.target:g}"
        if share(held, lambda multiplier: multiplier == 0) >= 0.8:
            advice = Advice((f"{path}.target={kl / 2:.2g}",), "less than it knows of its own accord")
            findings.append(
                Finding("the bottleneck's multiplier is at its limit, 0", when(recent), evidence, (advice,))
            )
        elif kl > 2 * config.target and recent[-1]["step"] >= recipe.steps / 2:
            # What is left of the run shall be enough to bring it as far as it is from 1.
            rate = max(1.0, held[-1]) / ((kl - config.target) * max(recipe.steps, 1))
            advice = Advice((f"{path}.rate={max(10 * config.rate, 10 * rate):.2g}",), "rises in the time of this run")
            other = Advice((f"{path}.multiplier={10 * max(held[-1], 0.1):.2g}",), "begins higher")
            what = "the bottleneck stays far above its target"
            findings.append(Finding(what, when(recent), evidence, (advice, other)))
    return findings


def _with_state(
    recipe: Recipe, lines: Sequence[Line], kind: str, name: str
) -> Iterator[tuple[str, Any, Sequence[dict[str, Any]]]]:
    """Path, config and recent lines of each discriminator of a kind; `state` in a line names its figure there.

    Of members of ensembles, the log numbers the figures as the config's path does.
    """
    for path, config in discriminators_of(_adversary(recipe)):
        numbers = re.findall(r"discriminators\.(\d+)", path)
        figure = "_".join([f"adversary/{name}", *reversed(numbers)])
        recent = [{**line, "state": figure} for line in recent_of(lines) if figure in line]
        if config.kind == kind and len(recent) >= ENOUGH:
            yield path, config, recent
