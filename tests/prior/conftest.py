"""A small untrained tokenizer, and folders of codes with something in them to be learnt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import tokenizers_vq as tvq
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.data.shards import shard_name

NAMES = ("cat", "dog", "fox")
SMALL = [
    "model.network={kind: gpt, layers: 2, dim: 32, heads: 2, multiple: 16}",
    "optimizer={lr: 3e-3, betas: [0.9, 0.95], weight_decay: 0.05, clip: 1.0}",
    "ema={decay: 0.9}",
    "precision=fp32",
    "batch_size=8",
    "steps=6",
    "log_every=2",
    "checkpoint_every=3",
    "evaluate_every=4",
    "image_every=0",
    "held_out=0.2",
]
"""overrides that make the recipe `gpt-tiny` small"""


def save_tokenizer(folder: Path, seed: int, codes: int = 16) -> Path:
    """A tokenizer of 16 x 16 images, 4 x 4 codes of 16."""
    torch.manual_seed(seed)
    narrow = ["encoder.width=16", "decoder.width=16", f"quantizer.num_codes={codes}", "image_size=16"]
    tvq.create("vqvae-tiny-64", narrow).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizers") / "a", 1)


@pytest.fixture(scope="session")
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizers") / "b", 2)


@pytest.fixture(scope="session")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer as `tokenizer`, whose codes tell pictures apart."""
    folder = save_tokenizer(tmp_path_factory.mktemp("tokenizers") / "lively", 3)
    made = tvq.load(folder)
    drawn = made.encode_features(torch.rand(16, 3, 16, 16) * 2 - 1).movedim(1, -1).flatten(0, -2)
    with torch.no_grad():
        made.quantizer.codebook.copy_(drawn[:: len(drawn) // 16][:16])
    made.save_pretrained(folder)
    return folder


def chains(layout: CodeLayout, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Codes `(count, N)`, labels: nine times in ten a code follows from the one before by a rule of the class."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % len(NAMES)
    size = min(layout.sizes)
    codes = np.empty((count, layout.length), dtype=np.uint16)
    codes[:, 0] = random.integers(0, size, count)
    for place in range(1, layout.length):
        noise = random.random(count) < 0.1
        codes[:, place] = np.where(noise, random.integers(0, size, count), (codes[:, place - 1] + labels + 1) % size)
    return codes, labels


@pytest.fixture(scope="session")
def write_codes(tokenizer: Path) -> Callable[..., Path]:
    """Writes a folder of codes as `tvq encode` leaves it; changes of `codes.json` and of columns as keywords.

    `of`: another tokenizer's folder.
    """

    def write(
        folder: Path,
        count: int = 60,
        seed: int = 0,
        labels: np.ndarray | None = None,
        shards: int = 2,
        of: Path = tokenizer,
        **info: object,
    ) -> Path:
        made = tvq.load(of)
        layout = made.code_layout()
        codes, own = chains(layout, count, seed)
        described = {
            "tokenizer": str(of),
            "fingerprint": made.fingerprint,
            "layout": layout.to_dict(),
            "image_size": 16,
            "precision": "fp32",
            "label_names": list(NAMES),
            "shards": shards,
            "images": count,
            "broken": {},
            **info,
        }
        folder.mkdir(parents=True)
        (folder / "codes.json").write_text(json.dumps(described))
        for part, rows in enumerate(np.array_split(np.arange(count), shards)):
            flat = pa.array(codes[rows].reshape(-1))
            table = {
                "codes": pa.FixedSizeListArray.from_arrays(flat, layout.length),
                "fingerprint": pa.array([described["fingerprint"]] * len(rows)),
                "key": pa.array([f"image {seed}-{row}" for row in rows]),
                "label": pa.array((own if labels is None else labels)[rows].astype(np.int64)),
            }
            pq.write_table(pa.table(table), folder / shard_name(part, shards))
        return folder

    return write


@pytest.fixture(scope="session")
def codes(write_codes: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_codes(tmp_path_factory.mktemp("codes") / "train")
