"""One self-contained HTML page about a tokenizer: how its codes are used, and what its reconstructions look like."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tokenizers_vq.evaluation import figures, pages
from tokenizers_vq.evaluation.evaluate import Evaluation, eval_mode, evaluate
from tokenizers_vq.evaluation.exemplars import Exemplar, Exemplars, Sample
from tokenizers_vq.evaluation.tables import label, rows
from tokenizers_vq.evaluation.usage import StreamUsage, Usage


class Verdict(NamedTuple):
    """State of a codebook in plain words."""

    state: str
    """`healthy`, `partly dead`, `collapsed` or `undecided`"""
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


class Figure(NamedTuple):
    """A picture of the page: PNG for light and dark pages, a title, and what to look for."""

    name: str
    title: str
    caption: str
    light: bytes
    dark: bytes | None = None

    @property
    def sources(self) -> tuple[str, str | None]:
        return pages.uri(self.light), None if self.dark is None else pages.uri(self.dark)


class _Row(NamedTuple):
    code: int
    times: str
    width: float
    """of the row's picture, in percent: patches of all rows are of one size"""
    source: str


def write_report(
    tokenizer: Any,
    batches: Iterable[Mapping[str, Any]],
    out: Path | str,
    *,
    title: str = "Tokenizer report",
    data_description: str = "",
    evaluation: Evaluation | None = None,
    **options: Any,
) -> Path:
    """Write `report.html` (nothing outside it is needed), `report.json` and PNGs into the folder `out`; one process.

    Without `evaluation` the batches are evaluated on the way, with `options` of `evaluate`; with it they are encoded
    once more for the pictures, so `batches` must be iterable again. Each file is replaced atomically, the page last.
    Returns the page's path. Raises `ValueError` for no images.
    """
    from tokenizers_vq.folders import write_atomically

    out, sample = Path(out), Sample()
    exemplars: Exemplars | None = None

    def watch(images: Tensor, reconstructions: Tensor, codes: Any) -> None:
        nonlocal exemplars
        if exemplars is None:
            height, width = images.shape[-2:]
            exemplars = Exemplars(tokenizer.code_layout(height, width), height, width)
        exemplars.update(images, codes)
        sample.update(images, reconstructions)

    if evaluation is None:
        evaluation = evaluate(tokenizer, batches, watch=watch, **options)
    else:
        # Nothing is summed over processes here: the first one may draw the report of an evaluation that all made.
        device = getattr(tokenizer, "device", "cpu")
        with eval_mode(tokenizer):
            for batch in batches:
                images = batch["images"].to(device)
                codes = tokenizer.encode(images)
                watch(images, tokenizer.decode(codes), codes)
    if exemplars is None:
        raise ValueError("no images to draw: the batches were empty, or iterated to their end already")
    usage, judged = evaluation.usage, verdict(evaluation.usage)
    geometry = figures.codebook_geometry(usage, getattr(tokenizer, "quantizers", ()))
    pictures = _pictures(evaluation, geometry, sample)
    most, least = exemplars.extremes(usage)
    files = {f"{picture.name}.png": picture.light for picture in pictures}
    for name, group in (("most-used-codes", most), ("least-used-codes", least)):
        if group:
            files[f"{name}.png"] = figures.image_png(figures.patch_rows([exemplar.patches for exemplar in group]))
    page = pages.template("report.html.j2").render(
        title=title,
        data_description=data_description,
        verdict=judged,
        tiles=_tiles(evaluation),
        metrics=rows(evaluation),
        skipped=[(label(name), why) for name, why in evaluation.skipped.items()],
        figures={picture.name: picture for picture in pictures},
        groups=[("Most used codes", _rows(most)), ("Least used codes", _rows(least))] if most else [],
        exemplar_caption=_exemplar_caption(exemplars, usage),
        no_codebook=not geometry,
        fingerprint=evaluation.tokenizer.get("fingerprint"),
        layout=usage.described,
    )
    record = {
        "title": title,
        "data_description": data_description,
        "verdict": judged._asdict(),
        "codebooks": [book.to_dict() for book in geometry],
        "files": sorted(files),
        **evaluation.to_dict(),
    }
    for name, content in files.items():
        write_atomically(out / name, content)
    write_atomically(out / "report.json", json.dumps(record, indent=2) + "\n")
    write_atomically(out / "report.html", page)
    return out / "report.html"


def _tiles(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    usage, metrics = evaluation.usage, evaluation.metrics
    perplexity = " / ".join(f"{stream.perplexity:,.0f}" for stream in usage.streams[:4])
    tiles = [
        ("Usage", f"{usage.usage:.1%}", "of all codes occur"),
        ("Perplexity", perplexity + (" ..." if len(usage.streams) > 4 else ""), "codes, if all were equally frequent"),
        ("Dead codes", f"{usage.dead:,}", "never occur"),
        ("Bits per pixel", f"{usage.bits_per_pixel:.3g}", f"{usage.entropy_bits_per_pixel:.3g} at the codes' entropy"),
    ]
    for name, metric in metrics.items():
        if name != "mse":
            value = f"{metric.value:#.3g}" if metric.value < 1 else f"{metric.value:.1f}"
            tiles.append((label(name), f"{value} {metric.unit}".strip(), f"{metric.better} is better"))
    return tiles


def _rows(group: list[Exemplar]) -> list[_Row]:
    most = max((len(found.patches) for found in group), default=1)
    return [
        _Row(
            found.code,
            f"{found.occurrences:,}",
            100 * len(found.patches) / most,
            pages.uri(figures.image_png(figures.patch_rows([found.patches]))),
        )
        for found in group
    ]


def _exemplar_caption(exemplars: Exemplars, usage: Usage) -> str:
    if not exemplars.enabled:
        return "Exemplars are left out for codebooks above 2^20 codes."
    which = usage.name(exemplars.stream)
    stream = "" if len(usage.streams) == 1 else f" Codes of {which}."
    if not exemplars.located:
        return f"These codes have no place in the image, so whole images in which they occur are shown.{stream}"
    height, width = exemplars.window
    return (
        f"{height}x{width} pixels around places where the code was chosen, one code a row. A good code means one "
        "thing: its row looks alike. Flat, featureless patches among the most used codes are normal (sky, shadow); "
        f"rows of unrelated patches say that the codes are too few or still moving.{stream}"
    )


def _pictures(evaluation: Evaluation, geometry: list[figures.CodebookGeometry], sample: Sample) -> list[Figure]:
    usage = evaluation.usage
    found = [
        Figure(
            "reconstructions",
            "Reconstructions",
            f"{len(sample.pairs())} of {sample.seen:,} images drawn at random: the original above, its reconstruction "
            "below. Look for text and faces (detail that codes cannot hold), for blur (no adversary, or one that is "
            "too weak) and for a grid-like grain (an adversary that is too strong or started too early).",
            figures.image_png(figures.reconstruction_grid(sample.pairs())),
        )
    ]
    found.append(
        Figure(
            "rank-frequency",
            "Rank and frequency",
            "Codes sorted by how often they occur. A line near the dashed one is even use; one that drops off well "
            f"before the dotted line ends in dead codes: {usage.dead:,} here.",
            *figures.both(functools.partial(figures.rank_frequency, usage)),
        )
    )
    if any(stream.position_entropy is not None for stream in usage.streams):

        def draw_maps(theme: figures.Theme) -> Any:
            return figures.entropy_maps(usage, theme)

        shown = min(len(usage.streams), figures.MAX_STREAMS)
        extra = f" The first {shown} of {len(usage.streams)} streams." if shown < len(usage.streams) else ""
        found.append(
            Figure(
                "entropy-map",
                "Entropy by position",
                "How varied the codes are at each position, in bits. Even is good; borders that differ point to "
                f"padding, a position near 0 says the same in every image. {usage.images:,} images can show at most "
                f"{math.log2(max(usage.images, 1)):.1f} bits.{extra}",
                *figures.both(draw_maps),
            )
        )
    if geometry:
        found.append(
            Figure(
                "codebook",
                "The codebook's vectors",
                "Left: lengths (all 1 for cosine codes). Right: distance of each code to its nearest neighbour. Dead "
                "codes far from the used ones were left behind by the encoder; a heap at distance 0 is codes that say "
                "the same.",
                *figures.both(functools.partial(figures.codebooks, geometry)),
            )
        )
    if evaluation.spectra is not None:
        distance = evaluation.metrics["spectrum_distance"].value
        found.append(
            Figure(
                "spectrum",
                "Power spectrum",
                f"Mean power by spatial frequency; the curves differ by {distance:.2f} dB (root mean square). "
                "Reconstructions below the originals at the right end are blurred; above them, or with bumps, they "
                "carry grain.",
                *figures.both(functools.partial(figures.spectrum, evaluation.spectra)),
            )
        )
    return found
