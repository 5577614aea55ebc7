"""What the verbs open: a model on its device, data as options or a run say it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers_vq.config import parse, read_yaml
from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.batches import Batches
from tokenizers_vq.data.columns import NONE
from tokenizers_vq.data.sources import open_source
from tokenizers_vq.data.splits import NoSplitError
from tokenizers_vq.data.transforms import PREPROCESSING
from tokenizers_vq.encoding import BatchEncoder
from tokenizers_vq.folders import local, read_config
from tokenizers_vq.tokenizer import Tokenizer
from tokenizers_vq.verbs.options import Progress

Model = str | Path | Tokenizer
"""a run, a saved folder, a shipped or published name, owner/name of the Hub; or a tokenizer, put into eval mode"""
Data = str | Path | DataConfig
"""folder of images, parquet or webdataset files, owner/name of the Hub; or a config that says all"""
logger = logging.getLogger(__name__)


def open_encoder(model: Model, device: Any = "auto", precision: str = "auto", keep: int | None = None) -> BatchEncoder:
    """The tokenizer on its device, which is logged; `auto` leaves a tokenizer itself where it is."""
    if isinstance(model, Tokenizer) and device == "auto":
        device = model.device
    encoder = BatchEncoder(model, device=device, precision=precision, keep=keep)
    logger.info("%s on %s, %s", model_name(model), encoder.device, encoder.precision)
    return encoder


def model_name(model: Model) -> str:
    """What a model is called in messages and tables."""
    return "tokenizer" if isinstance(model, Tokenizer) else str(model)


def choose_data(data: Data | None, model: Model, **options: Any) -> DataConfig:
    """The data that are named, else the test split of what a run was trained on. `options`: fields of `DataConfig`.

    Raises `ValueError` where neither is there.
    """
    # Nothing that is measured asks for them; who asks for classes names the column, or None to find it.
    unread: dict[str, Any] = {"label_column": NONE, "caption_column": NONE}
    unread = {name: value for name, value in unread.items() if name not in options}
    if isinstance(data, DataConfig):
        return data.replace(**unread, **options)
    if data is not None:
        return DataConfig(path=str(data), **unread, **options)
    if isinstance(model, Tokenizer):
        raise ValueError("a tokenizer in memory does not know its data: give data=PATH")
    recipe, folder = Path(model) / "recipe.yaml", local(model)
    if folder is not None:
        read_config(folder)  # of a prior's run, whose recipe is another, it says so
    if not recipe.is_file():
        raise ValueError(f"{model} is not a run, so its data are not known: give --data PATH")
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


def describe(config: DataConfig, batches: Batches) -> dict[str, Any]:
    """What is read, which is logged, as results keep it: the folder that was chosen, its split and count."""
    about = batches.about
    logger.info("reading %s", about.description)
    described: dict[str, Any] = {"name": config.path, "split": about.split, "preprocessing": PREPROCESSING}
    if config.range is not None:
        described["range"] = list(config.range)
    return {**described, "folder": about.folder, "source": about.description}


def counted(batches: Batches, progress: Progress | None) -> Iterator[Mapping[str, Any]]:
    """The batches; `progress` is told of each once it was dealt with."""
    total = None if batches.source is None else len(batches.source)
    done = 0
    for batch in batches:
        yield batch
        done += len(batch["images"])
        if progress is not None:
            progress(done, total)


def name_broken(broken: Mapping[str, str]) -> None:
    """Log every image that was skipped."""
    for name, reason in broken.items():
        logger.warning("skipped %s: %s", name, reason)
