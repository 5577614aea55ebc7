"""What the verbs share: options, errors as one line, data as options or a run say it."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tokenizers_vq.text import printable

if TYPE_CHECKING:
    from tokenizers_vq.data import DataConfig
    from tokenizers_vq.encoding import BatchEncoder

Model = Annotated[
    str, typer.Argument(metavar="RUN|MODEL", help="a run, a saved folder, a shipped or published name, owner/name")
]
BatchSize = Annotated[int, typer.Option(min=1, help="images at a time")]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="where to compute")]


def make_app(
    about: str, verbs: Sequence[Callable[..., None]], open_to: Sequence[Callable[..., None]] = ()
) -> typer.Typer:
    """An app of these verbs, with --debug and --version; `open_to`: those that read options of other names."""
    app = typer.Typer(
        help=about,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for verb in verbs:
        app.command(context_settings={"ignore_unknown_options": True} if verb in open_to else None)(verb)

    @app.callback()
    def options(
        debug: bool = typer.Option(False, "--debug", help="show the traceback of an error"),
        version: bool = typer.Option(
            False, "--version", help="print the version", is_eager=True, callback=print_version
        ),
    ) -> None:
        pass  # `run_app` reads --debug wherever it stands

    return app


def print_version(wanted: bool) -> None:
    """Print the installed version and stop, where it is asked for."""
    if wanted:
        from importlib.metadata import version

        print(f"tokenizers-vq {version('tokenizers-vq')}")
        raise typer.Exit


def run_app(app: typer.Typer, name: str, argv: Sequence[str] | None = None) -> None:
    """Run `app` and exit; an error that the caller can put right is one line on stderr and status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if logging.lastResort is not None:  # where no handler was set up: names of files and of tensors stand in warnings
        logging.lastResort.setFormatter(_PrintableFormatter())
    try:
        app(args=[argument for argument in arguments if argument != "--debug"], prog_name=name)
    except SystemExit as stop:
        _exit(stop.code)
    except (ValueError, OSError) as error:
        if debug:
            raise
        note(f"{name}: {' '.join(str(error).split()) or type(error).__name__}")
        _exit(2)


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
    """Print names, each beside the comment that opens its file, or the title of its model card."""
    print(title)
    width = max((len(name) for name in paths), default=0)
    for name, path in paths.items():
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if path.suffix == ".md":
            lines = [line.replace(f"# {name}: ", "# ") for line in lines if line.startswith("# ")]
        comment = lines[0].lstrip("# ") if lines and lines[0].startswith("#") else ""
        print(f"  {name:{width}}  {comment}".rstrip())


def open_encoder(model: str, device: str, precision: str) -> BatchEncoder:
    """The tokenizer on its device, said on stderr."""
    from tokenizers_vq.encoding import BatchEncoder

    encoder = BatchEncoder(model, device=device, precision=precision)
    note(f"{model} on {encoder.device}, {encoder.precision}")
    return encoder


def choose_data(data: str | None, model: str, **options: Any) -> DataConfig:
    """The data that an option names, else the test split of what a run was trained on.

    Raises `ValueError` where neither is there.
    """
    from tokenizers_vq.config import parse, read_yaml
    from tokenizers_vq.data import DataConfig
    from tokenizers_vq.data.columns import NONE
    from tokenizers_vq.data.sources import open_source
    from tokenizers_vq.data.splits import NoSplitError
    from tokenizers_vq.folders import local, read_config

    unread: dict[str, Any] = {
        "label_column": NONE,
        "caption_column": NONE,
    }  # who asks for classes names the column, or None to find it
    unread = {name: value for name, value in unread.items() if name not in options}
    if data is not None:
        return DataConfig(path=data, **unread, **options)
    recipe, folder = Path(model) / "recipe.yaml", local(model)
    if folder is not None:
        read_config(folder)  # of a prior's run, whose recipe is another, it says so
    if not recipe.is_file():
        raise ValueError(f"{model} is no run that would know its data: give --data PATH")
    known = parse(DataConfig, read_yaml(recipe).get("data") or {}, str(recipe))
    given = {name: value for name, value in options.items() if value not in (None, False)}
    known = known.replace(**{"limit": None, "split": None, **unread, **given})
    if known.split is not None:
        return known
    for split in ("test", "validation"):
        try:
            open_source(known.replace(split=split))
        except NoSplitError:
            continue
        return known.replace(split=split)
    raise ValueError(f"{known.path}, which {model} was trained on, has no test split: give --data PATH or --split NAME")


def describe(config: DataConfig, batches: Any) -> dict[str, Any]:
    """What is read, said on stderr, and as results keep it: the folder that was chosen, its split and count."""
    from tokenizers_vq.data.transforms import PREPROCESSING

    about = batches.about
    note(f"reading {about.description}")
    described: dict[str, Any] = {"name": config.path, "split": about.split, "preprocessing": PREPROCESSING}
    if config.range is not None:
        described["range"] = list(config.range)
    return {**described, "folder": about.folder, "source": about.description}


def told(batches: Any, verb: str, every: float = 30.0) -> Iterator[Mapping[str, Any]]:
    """The batches, with a line on stderr every half minute: how many images are done, of how many, how fast."""
    source = batches.source
    total = "" if source is None else f" of {len(source):,}"
    start = said = time.perf_counter()
    done = 0
    for batch in batches:
        yield batch  # what is asked for next was dealt with
        done += len(batch["images"])
        now = time.perf_counter()
        if now - said >= every:
            said = now
            note(f"{verb} {done:,}{total} images, {done / (now - start):,.1f} a second")


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def note(text: str) -> None:
    """A line for the person, on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def show_notes(logger: str) -> None:
    """From now on, print what this logger says of its work, as `note` does."""
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableFormatter())
    chosen = logging.getLogger(logger)
    chosen.handlers = [handler]
    chosen.setLevel(logging.INFO)


def name_broken(broken: Mapping[str, str]) -> None:
    """Name every image that was skipped."""
    for name, reason in broken.items():
        note(f"skipped {name}: {reason}")


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
