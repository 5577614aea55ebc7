"""Captions of images: from the codes, or made of the names of their classes; counted before training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator

from tokenizers_vq.config import Config
from tokenizers_vq.data.order import evenly
from tokenizers_vq.data.shards import CodeShards

logger = logging.getLogger(__name__)

_BLOCK = 65536


def _template(value: str) -> str:
    if value.count("{}") != 1:
        raise ValueError(f"needs one {{}} where the class's name goes, such as 'a photo of a {{}}', got '{value}'")
    return value


class CaptionFields(Config):
    """What the config of any condition by text says of captions."""

    template: Annotated[str, AfterValidator(_template)] | None = None
    """makes a caption of the name of each image's class, where codes have no captions: `a photo of a {}`"""


def captions_of(batch: Mapping[str, Any], template: str | None) -> list[tuple[str, ...]] | None:
    """All captions of each image of a batch of codes; None where it has none, and no named classes for the template."""
    if batch["captions"] is not None or template is None or batch.get("label_names") is None:
        return batch["captions"]
    made = [(template.replace("{}", name),) for name in batch["label_names"]]
    return [made[label] if label >= 0 else () for label in batch["labels"].tolist()]


def blocks(codes: CodeShards, template: str | None, most: int | None = None) -> Iterator[list[tuple[str, ...]] | None]:
    """All captions of a folder of codes, a block of rows at a time; None for a block of codes without any.

    `most`: of so many rows, evenly spread.
    """
    some = None if most is None else evenly(len(codes), most, codes.block)
    for first in range(0, len(codes) if some is None else len(some), _BLOCK):
        rows = np.arange(first, min(first + _BLOCK, len(codes))) if some is None else some[first : first + _BLOCK]
        batch = {
            "captions": codes.captions_of(rows),
            "labels": codes.labels_of(rows),
            "label_names": codes.label_names,
        }
        yield captions_of(batch, template)


def count(
    shards: Mapping[str, CodeShards], template: str | None, kind: str, cut: Callable[[Sequence[str]], int], most: str
) -> None:
    """The log says how many captions are cut, as `cut` counts them, to `most`, and how many images have none; of more
    codes than stay in memory, among those that are looked at.

    Raises `ValueError` for codes without captions.
    """
    for folder, codes in shards.items():
        captions = shortened = bare = looked = 0
        for rows in blocks(codes, template, None if codes.small else _BLOCK):
            if rows is None:
                columns = ", ".join(["key", *codes.label_columns])
                raise ValueError(
                    f"model.condition={kind}: {folder} holds no captions (its columns: {columns}): encode data that "
                    "have some (data.caption_column), give a template over names of classes, or use class or none"
                )
            texts = [text for row in rows for text in row]
            captions, shortened = captions + len(texts), shortened + cut(texts)
            bare, looked = bare + sum(not any(row) for row in rows), looked + len(rows)
        if shortened:
            logger.warning("%s: %d of %d captions are cut to %s", folder, shortened, captions, most)
        if bare:
            logger.warning("%s: %d of %d images have no caption, which counts as no condition", folder, bare, looked)


def remark(value: Any, cut: Callable[[Sequence[str]], int], most: str) -> None:
    """The log says how many prompts are cut, as `cut` counts them, to `most`, and how many say nothing; `value`: as of
    `check_texts`.
    """
    texts = _prompts(value)
    if shortened := cut(texts):
        logger.warning("%d of %d prompts are cut to %s", shortened, len(texts), most)
    if bare := texts.count(""):
        logger.warning("%d of %d prompts are empty, which counts as no condition", bare, len(texts))


def absent(value: Any) -> bool:
    """Whether prompts are asked for, `value` as of `check_texts`, none of which says anything."""
    return value is None or (isinstance(value, (str, list, tuple)) and not any(_prompts(value)))


def _prompts(value: Any) -> list[str]:
    prompts = [value] if isinstance(value, str) else value
    return [one for one in prompts if isinstance(one, str)] if isinstance(prompts, (list, tuple)) else []


def check_texts(value: Any, n: int) -> list[str]:
    """A prompt for all rows or one a row, None for no condition -> `n` texts, "" for none.

    Raises `ValueError` for anything but texts, or another number of them.
    """
    texts = [value] * n if value is None or isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(one is None or isinstance(one, str) for one in texts):
        raise ValueError(f"this prior is told a text, got {type(value).__name__}: give a prompt, or a list of them")
    if len(texts) != n:
        raise ValueError(f"{len(texts)} prompts are given for {n} rows: give one for all, or one for each")
    return [one or "" for one in texts]


def take(batch: Mapping[str, Any], template: str | None, draw: bool) -> list[str]:
    """One caption of each image: drawn by torch's generator, or the first; "" where it has none.

    Raises `ValueError` for codes without captions.
    """
    captions = captions_of(batch, template)
    if captions is None:
        raise ValueError("this prior is told a text, but these codes have no captions: encode data that have some")
    if not draw:
        return [row[0] if row else "" for row in captions]
    draws = torch.rand(len(captions), device="cpu").tolist()
    return [row[int(share * len(row))] if row else "" for row, share in zip(captions, draws, strict=True)]
