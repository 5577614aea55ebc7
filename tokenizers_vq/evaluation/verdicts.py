"""What an evaluation's numbers say in plain words: of the codebook, and of the pictures."""

from __future__ import annotations

import math
from typing import NamedTuple

from tokenizers_vq.evaluation.spectrum import Spectrum
from tokenizers_vq.evaluation.usage import StreamUsage, Usage

FINE = 0.25
"""cycles a pixel above which detail counts as fine"""
BLURRED, GRAINY = -2.0, 1.0
"""dB of power above `FINE`, reconstructions against originals: a Gaussian blur of half a pixel costs 4, noise of 10/255
adds 1 (64 photographs at 64 px)"""


class Verdict(NamedTuple):
    """State of a codebook, or of the pictures, in plain words."""

    state: str
    """a codebook: `healthy`, `partly dead`, `collapsed` or `undecided`; pictures: `sharp`, `blurred` or `grainy`"""
    reason: str
    advice: str


_REVIVE = "set `revive_after` (about 100 steps), use `distance: cosine` with a `dim` of 8 to 32"
_SEVERITY = ("healthy", "undecided", "partly dead", "collapsed")


def verdict(usage: Usage) -> Verdict:
    """Judges every stream; the worst one speaks."""
    verdicts = [_judge(stream) for stream in usage.streams]
    worst = max(range(len(verdicts)), key=lambda index: _SEVERITY.index(verdicts[index].state))
    if len(verdicts) == 1:
        return verdicts[0]
    found = verdicts[worst]
    return found._replace(reason=f"{usage.name(worst)}: {found.reason}")


def _judge(stream: StreamUsage) -> Verdict:
    # Even uniform use of K codes leaves exp(-tokens / K) of them unseen.
    reachable = 1 - math.exp(-stream.tokens / stream.size)
    numbers = (
        f"{stream.used:,} of {stream.size:,} codes occur ({stream.usage:.1%}), used as evenly as "
        f"{stream.perplexity:,.0f} equally frequent ones."
    )
    if stream.size > 1 and stream.perplexity < max(1.5, 0.02 * min(stream.size, max(stream.tokens, 1))):
        return Verdict(
            "collapsed", numbers, f"Almost everything is said with a few codes: {_REVIVE}, and lower the learning rate."
        )
    if reachable < 0.95:
        return Verdict(
            "undecided",
            f"{numbers} {stream.tokens:,} codes are too few to judge: even uniform use would show {reachable:.0%}.",
            f"Evaluate more images, at least {math.ceil(3 * stream.size / max(stream.tokens, 1)):,} times as many.",
        )
    share = stream.usage / reachable
    if share < 0.1:
        return Verdict("collapsed", numbers, f"Most codes never won a vector: {_REVIVE}, and lower the learning rate.")
    if share < 0.9:
        return Verdict(
            "partly dead",
            numbers,
            f"Dead codes cost bits and say nothing: {_REVIVE}, train longer, or ask for fewer codes.",
        )
    if stream.perplexity < 0.2 * stream.size:
        return Verdict(
            "healthy",
            f"{numbers} Use is uneven.",
            "Nothing is dead, but few codes do most of the work: fewer codes, or stronger revival, would cost little.",
        )
    return Verdict("healthy", numbers, "Nothing to mend here.")


def picture_verdict(spectra: tuple[Spectrum, Spectrum] | None) -> Verdict | None:
    """Judges sharpness by the power in fine detail; None for images too small to have a spectrum."""
    if spectra is None:
        return None
    originals, reconstructions = spectra
    fine = originals.frequencies > FINE
    gain = float((reconstructions.decibels - originals.decibels)[fine].mean())
    numbers = f"Fine detail has {abs(gain):.1f} dB {'less' if gain < 0 else 'more'} power than in the originals."
    if gain < BLURRED:
        return Verdict(
            "blurred",
            numbers,
            "Codes in use are no proof of good pictures: train longer, add a perceptual loss or an adversary, or give "
            "the images more codes.",
        )
    if gain > GRAINY:
        return Verdict(
            "grainy",
            numbers,
            "Usually the adversary is too strong or starts too early: lower `adversary.weight`, or start it later.",
        )
    return Verdict("sharp", numbers, "Sharp does not mean right: look at the reconstructions below.")
