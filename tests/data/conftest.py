"""Tables that `datasets` converts land in a folder of the test run, never in the user's cache."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image


def png(value: int) -> bytes:
    """A grey picture of 4x4."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """A tar of `members` in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory):
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
    patch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", str(tmp_path_factory.mktemp("downloads")))
    # an abandoned stream of several parquet files waits 5 s for its threads
    patch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1, raising=False)
    datasets.disable_progress_bars()
    yield
    patch.undo()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """24 pictures of 20x24 in two class folders; number 5 and 6 (in the order of names) are broken."""
    generator = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / "pictures" / ("a" if number < 12 else "b") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number in (5, 6):
            path.write_bytes(b"no picture")
        else:
            Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return tmp_path / "pictures"
