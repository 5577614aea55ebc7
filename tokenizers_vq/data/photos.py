"""The photographs that come inside scikit-image: real images for a machine without network or data.

Few and large, so they are cut into overlapping windows. The left of every photograph is the `train` split, the right
`test`; no pixel is in both.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "moon.png",
    "motorcycle_left.png",
    "rocket.jpg",
)
"""photographs of everyday kind, in colour and grey; drawings, charts, scans and micrographs are left out"""

WINDOW = 128
LARGEST = 512  # shorter side: larger photographs would outnumber the others
TRAIN_SHARE = 0.65
STRIDE = {"train": 16, "test": 32}


def folder() -> Path:
    """Where scikit-image keeps its pictures. Raises `FileNotFoundError` where it is not installed or brings none."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "data 'skimage' needs scikit-image: pip install scikit-image, or give a folder of images"
        )
    found = Path(spec.origin).parent / "data"
    if not any((found / name).is_file() for name in NAMES):
        raise FileNotFoundError(f"no photographs in {found}; install a scikit-image >= 0.22 wheel, or give a folder")
    return found


@lru_cache(maxsize=len(NAMES))
def photograph(path: Path) -> np.ndarray:
    """`(H, W, 3)` uint8."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    scale = LARGEST / min(picture.size)
    if scale < 1:
        size = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    return np.array(picture)


def windows(split: str) -> tuple[list[Path], list[tuple[int, int, int]]]:
    """Paths of the photographs, and `(photograph, top, left)` of every window of a split, in order."""
    root = folder()
    paths = [root / name for name in NAMES if (root / name).is_file()]
    result = []
    for number, path in enumerate(paths):
        height, width = photograph(path).shape[:2]
        border = round(width * TRAIN_SHARE)
        first, last = (0, border) if split == "train" else (border, width)
        for top in range(0, height - WINDOW + 1, STRIDE[split]):
            result += [(number, top, left) for left in range(first, last - WINDOW + 1, STRIDE[split])]
    return paths, result
