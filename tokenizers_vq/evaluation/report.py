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
from tokenizers_vq.evaluation.curves import History, draw_history
from tokenizers_vq.evaluation.evaluate import Evaluation, eval_mode, evaluate
from tokenizers_vq.evaluation.exemplars import Exemplar, Exemplars, Sample
from tokenizers_vq.evaluation.measures import AIMS
from tokenizers_vq.evaluation.tables import label, rows
from tokenizers_vq.evaluation.usage import Usage
from tokenizers_vq.evaluation.verdicts import picture_verdict, verdict
from tokenizers_vq.folders import write_atomically


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
    history: History | None = None,
    **options: Any,
) -> Path:
    """Write `report.html` (nothing outside it is needed), `report.json` and PNGs into the folder `out`; one process.

    Without `evaluation` the batches are evaluated on the way, with `options` of `evaluate`; with it they are encoded
    once more for the pictures, so `batches` must be iterable again. `history`: the run that trained the tokenizer, for
    its curves and what the doctor found. Each file is replaced atomically, the page last. Returns the page's path.
    Raises `ValueError` for no images.
    """
    out, seen = Path(out), _Seen(tokenizer)
    if evaluation is None:
        evaluation = evaluate(tokenizer, batches, watch=seen.watch, **options)
    else:
        # Nothing is summed over processes here: the first one may draw the report of an evaluation that all made.
        device = getattr(tokenizer, "device", "cpu")
        with eval_mode(tokenizer):
            for batch in batches:
                images = batch["images"].to(device)
                codes = tokenizer.encode(images)
                seen.watch(images, tokenizer.decode(codes), codes)
    if seen.exemplars is None:
        raise ValueError("no images to draw: the batches were empty, or iterated to their end already")
    geometry = figures.codebook_geometry(evaluation.usage, getattr(tokenizer, "quantizers", ()))
    pictures = _pictures(evaluation, geometry, seen.sample) + (_curves(history) if history else [])
    page, files = _render(evaluation, geometry, seen.exemplars, pictures, history, (title, data_description))
    sharpness = picture_verdict(evaluation.spectra)
    record = {
        "title": title,
        "data_description": data_description,
        "verdict": verdict(evaluation.usage)._asdict(),
        "pictures": None if sharpness is None else sharpness._asdict(),
        "findings": [] if history is None else [finding._asdict() for finding in history.findings],
        "codebooks": [book.to_dict() for book in geometry],
        "files": sorted(files),
        **evaluation.to_dict(),
    }
    for name, content in files.items():
        write_atomically(out / name, content)
    write_atomically(out / "report.json", json.dumps(record, indent=2) + "\n")
    write_atomically(out / "report.html", page)
    return out / "report.html"


class _Seen:
    """What the page shows of the images that pass."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.sample = tokenizer, Sample()
        self.exemplars: Exemplars | None = None

    def watch(self, images: Tensor, reconstructions: Tensor, codes: Any) -> None:
        if self.exemplars is None:
            height, width = images.shape[-2:]
            self.exemplars = Exemplars(self.tokenizer.code_layout(height, width), height, width)
        self.exemplars.update(images, codes)
        self.sample.update(images, reconstructions)


def _render(
    evaluation: Evaluation,
    geometry: list[figures.CodebookGeometry],
    exemplars: Exemplars,
    pictures: list[Figure],
    history: History | None,
    titles: tuple[str, str],
) -> tuple[str, dict[str, bytes]]:
    """The page, and the pictures as files beside it."""
    usage = evaluation.usage
    most, least = exemplars.extremes(usage)
    files = {f"{picture.name}.png": picture.light for picture in pictures}
    for name, group in (("most-used-codes", most), ("least-used-codes", least)):
        if group:
            files[f"{name}.png"] = figures.image_png(figures.patch_rows([exemplar.patches for exemplar in group]))
    widest = max((len(found.patches) for found in [*most, *least]), default=1)
    judged = [("codebook", verdict(usage)), ("pictures", picture_verdict(evaluation.spectra))]
    page = pages.template("report.html.j2").render(
        title=titles[0],
        data_description=titles[1],
        verdicts=[(what, found) for what, found in judged if found is not None],
        findings=() if history is None else history.findings,
        run=None if history is None else history.run,
        tiles=_tiles(evaluation),
        metrics=rows(evaluation),
        skipped=[(label(name), why) for name, why in evaluation.skipped.items()],
        figures={picture.name: picture for picture in pictures},
        groups=[("Most used codes", _rows(most, widest)), ("Least used codes", _rows(least, widest))] if most else [],
        exemplar_caption=_exemplar_caption(exemplars, usage),
        no_codebook=not geometry,
        fingerprint=evaluation.tokenizer.get("fingerprint"),
        layout=usage.described,
    )
    return page, files


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
            value = f"{metric.value:#.3g}" if metric.value < 10 else f"{metric.value:.1f}"
            originals = metric.definition.get("originals")
            note = AIMS[metric.better] if originals is None else f"{originals:.2f} in the originals"
            tiles.append((label(name), f"{value} {metric.unit}".strip(), note))
    return tiles


def _rows(group: list[Exemplar], most: int) -> list[_Row]:
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


def _curves(history: History) -> list[Figure]:
    if not history.lines:
        return []
    return [
        Figure(
            "training",
            "Training",
            "The run's own log. Reconstruction terms fall and flatten. A discriminator whose loss falls to 0, or that "
            "is right about everything, wins; at the dashed line it is at chance. A loss whose share of the gradient "
            "is next to 0 trains nothing. ADA's p at 1 and most weights clipped are limits reached. Usage that falls "
            "is a codebook that dies.",
            *figures.both(functools.partial(draw_history, history)),
        )
    ]


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
    found += _usage_pictures(usage)
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


def _usage_pictures(usage: Usage) -> list[Figure]:
    found = [
        Figure(
            "rank-frequency",
            "Rank and frequency",
            "Codes sorted by how often they occur. A line near the dashed one is even use; one that drops off well "
            f"before the dotted line ends in dead codes: {usage.dead:,} here.",
            *figures.both(functools.partial(figures.rank_frequency, usage)),
        )
    ]
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
    return found
