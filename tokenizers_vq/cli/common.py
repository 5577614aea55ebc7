"""What the verbs share: options, errors as one line, data as options or a run say it."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tokenizers_vq.text import printable

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

Model = Annotated[
    str,
    typer.Argument(
        metavar="RUN|MODEL", help="a run, a saved folder, a shipped or published name, or owner/name on the Hub"
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="how many images are processed at a time")]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="which device to compute on")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as one line of JSON")]
_quiet = False
"""whether notes are left out"""


def make_app(
    about: str, verbs: Sequence[Callable[..., None]], open_to: Sequence[Callable[..., None]] = ()
) -> typer.Typer:
    """An app of these verbs, with --debug, --quiet and --version; `open_to`: those that read options of other names."""
    app = typer.Typer(
        help=about,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for verb in verbs:
        app.command(context_settings={"ignore_unknown_options": True} if verb in open_to else None)(verb)

    @app.callback()
    def options(
        debug: bool = typer.Option(False, "--debug", help="show the traceback of an error"),
        quiet: bool = typer.Option(False, "--quiet", help="print results and errors only"),
        version: bool = typer.Option(
            False, "--version", help="print the version", is_eager=True, callback=print_version
        ),
    ) -> None:
        pass  # `run_app` reads --debug and --quiet wherever they stand

    return app


def print_version(wanted: bool) -> None:
    """Print the installed version and stop, where it is asked for."""
    if wanted:
        from importlib.metadata import version

        print(f"tokenizers-vq {version('tokenizers-vq')}")
        raise typer.Exit


def run_app(app: typer.Typer, name: str, argv: Sequence[str] | None = None) -> None:
    """Run `app` and exit; an error that the caller can put right is one line on stderr and status 2."""
    global _quiet
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug, _quiet = "--debug" in arguments, "--quiet" in arguments
    try:
        with _listening():
            app(args=[argument for argument in arguments if argument not in ("--debug", "--quiet")], prog_name=name)
    except SystemExit as stop:
        _exit(stop.code)
    except (ValueError, OSError) as error:
        if debug:
            raise
        _say(f"{name}: {' '.join(str(error).split()) or type(error).__name__}")
        _exit(2)


@contextmanager
def _listening() -> Iterator[None]:
    """Inside the block, what the packages log is notes for the person: of `tokenizers_vq`, and warnings of `prior`."""
    handler, named = _Notes(), [logging.getLogger(name) for name in ("tokenizers_vq", "prior")]
    handler.addFilter(lambda record: not record.name.startswith("tokenizers_vq.conversion"))  # `convert` says it itself
    if logging.lastResort is not None:  # for loggers of other packages
        logging.lastResort.setFormatter(_PrintableFormatter())
    ours, before = named[0], named[0].level
    ours.setLevel(logging.INFO)
    for logger in named:
        logger.addHandler(handler)
    try:
        yield
    finally:
        ours.setLevel(before)
        for logger in named:
            logger.removeHandler(handler)


def _exit(code: str | int | None) -> NoReturn:
    """Leave Python; as one of several processes without taking it down.

    Gloo's threads outlive the group, and one that asks for the interpreter meanwhile aborts the process (pytorch issue
    190489): the launcher would take what is done for failed.
    """
    if isinstance(code, str) or "torch" not in sys.modules:
        sys.exit(code)
    from tokenizers_vq.devices import processes

    if processes().world == 1:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def list_names(title: str, paths: Mapping[str, Path]) -> None:
    """Print names, each beside what `abouts` says of it."""
    print(title)
    width = max((len(name) for name in paths), default=0)
    for name, about in abouts(paths).items():
        print(f"  {name:{width}}  {about}".rstrip())


def abouts(paths: Mapping[str, Path]) -> dict[str, str]:
    """For each name the comment that opens its file, or the title of its model card."""
    found = {}
    for name, path in paths.items():
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if path.suffix == ".md":
            lines = [line.replace(f"# {name}: ", "# ") for line in lines if line.startswith("# ")]
        found[name] = lines[0].lstrip("# ") if lines and lines[0].startswith("#") else ""
    return found


def progress(verb: str, every: float = 30.0) -> Callable[[int, int | None], None]:
    """A callback that notes every half minute how many images are done, of how many, how fast."""
    start = said = time.perf_counter()

    def note_images(done: int, total: int | None) -> None:
        nonlocal said
        now = time.perf_counter()
        if now - said >= every:
            said = now
            of = "" if total is None else f" of {total:,}"
            note(f"{verb} {done:,}{of} images, {done / (now - start):,.1f} a second")

    return note_images


def shown_runs() -> AbstractContextManager[None]:
    """Inside the block, runs print their progress."""
    from tokenizers_vq.training.tracking import shown

    return nullcontext() if _quiet else shown()


def quiet() -> bool:
    """Whether `--quiet` was given."""
    return _quiet


def print_json(result: Any) -> None:
    """Print a result as one line of JSON; numbers that JSON does not have (NaN, infinity) are null."""
    print(json.dumps(_finite(result)))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


class _PrintableFormatter(logging.Formatter):
    """Names of files and of tensors stand in warnings."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _Notes(logging.Handler):
    """Log records as notes for the person."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def note(text: str) -> None:
    """A line for the person, on stderr; none with `--quiet`."""
    if not _quiet:
        _say(text)


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)


def show_notes(logger: str) -> None:
    """From now on, what this logger says of its work is notes for the person."""
    logging.getLogger(logger).setLevel(logging.INFO)


def file_names(keys: Sequence[str], suffix: str = ".png") -> list[str]:
    """A file name for every key: no folders, nothing a file system refuses, no two alike in any letter case."""
    taken: set[str] = set()
    names = []
    for key in keys:
        stem = key.rsplit(".", 1)[0] if "." in key.rsplit("/", 1)[-1][1:] else key
        kept = "".join(letter if letter.isalnum() or letter in "-_. " else "_" for letter in stem).strip(". ")
        kept = kept.encode()[:180].decode(errors="ignore") or "image"
        name, number = kept, 1
        while name.casefold() in taken:
            number += 1
            name = f"{kept}-{number}"
        taken.add(name.casefold())
        names.append(f"{name}{suffix}")
    return names


def write_png(path: Path, image: Any) -> None:
    """An image `(C, H, W)` in [-1, 1] as a PNG file. Raises `ValueError` for other than 1 or 3 channels."""
    import io

    from tokenizers_vq import folders, images

    buffer = io.BytesIO()
    images.to_pil(image).save(buffer, format="PNG")
    folders.write_atomically(path, buffer.getvalue())


def write_npy(path: Path, image: Any, range: tuple[float, float]) -> None:
    """An image `(C, H, W)` in [-1, 1] as a float32 array `(H, W, C)` of values in `range`."""
    import io

    import numpy as np

    from tokenizers_vq import folders, images

    buffer = io.BytesIO()
    np.save(buffer, images.to_array(image, range))
    folders.write_atomically(path, buffer.getvalue())
