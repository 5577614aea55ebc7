"""What data say of all their images is what their items say, one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.sources import Chosen, open_source

TEXTS = [["a", "b"], [], ["  ", ""], None, ["", "c"]]


def pictures(folder: Path, names: list[str]) -> list[bytes]:
    found = []
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
        found.append(path.read_bytes())
    return found


def agree(source: Any) -> None:
    items, told = source.items(range(len(source))), source.told()
    assert told.labels.tolist() == [item.label for item in items]
    spoken = [any(text.strip() for text in item.captions) for item in items]
    assert told.captions is None if not source.has_captions else [bool(texts) for texts in told.captions] == spoken


@pytest.mark.parametrize("labels", [[0, 2, -1, 1, 2], ["b", "a", "b", "c", "a"], None])
@pytest.mark.parametrize("captions", [TEXTS, ["a", "", " ", None, "b"], None])
def test_of_a_table(labels: Any, captions: Any, tmp_path: Path) -> None:
    images = [{"bytes": b, "path": None} for b in pictures(tmp_path / "p", [f"{i}.png" for i in range(5)])]
    columns: dict[str, Any] = {"image": images}
    columns |= {"label": labels} if labels else {}
    columns |= {"captions": pa.array(captions)} if captions else {}
    table = pa.table(columns)
    for i, part in enumerate((table[:2], table[2:])):
        pq.write_table(part, tmp_path / f"train-{i}.parquet")
    source = open_source(DataConfig(path=str(tmp_path / "*.parquet")))
    assert source.has_captions == (captions is not None)
    agree(source)
    agree(Chosen(source, range(0, len(source), 2)))


def test_of_folders_and_photographs(tmp_path: Path) -> None:
    pictures(tmp_path / "c", ["a/0.png", "b/1.png", "b/2.png"])
    agree(open_source(DataConfig(path=str(tmp_path / "c"))))
    pictures(tmp_path / "d", ["0.png", "1.png"])
    (tmp_path / "d" / "metadata.csv").write_text("file_name,caption\n0.png,a red dot\n1.png,\n")
    described = open_source(DataConfig(path=str(tmp_path / "d")))
    agree(described)
    assert described.told().captions == [("...",), ()]
    agree(open_source(DataConfig(path="skimage")))
