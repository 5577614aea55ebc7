"""A folder of small pictures, and the smallest recipe that has every moving part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

_NETWORK = "{kind: vqgan, width: 8, multipliers: [1, 2], blocks: 1, attention: [1], groups: 4, latent_width: 8}"
SMALL = [
    "model.image_size=16",
    f"model.encoder={_NETWORK}",
    f"model.decoder={_NETWORK}",
    "model.quantizer={kind: vector, num_codes: 32, dim: 4, distance: cosine, revive_after: 2}",
    "losses=[{kind: l1}, {kind: l2, weight: {kind: linear, begin: 0, end: 1, over: [0, 4]}}]",
    "adversary.discriminator={kind: patchgan, width: 4, layers: 1, norm: batch}",
    "adversary.start=auto",
    "adversary.window=2",
    "adversary.threshold=10.0",
    "adversary.warmup=1",
    "optimizer={lr: 1e-3, clip: 1.0}",
    "ema={decay: 0.9, warmup: false}",
    "precision=fp32",
    "batch_size=8",
    "accumulate=2",
    "steps=8",
    "log_every=2",
    "checkpoint_every=4",
    "image_every=0",
    "data.workers=0",
]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """19 RGB pictures of 20x24 pixels, smooth enough to be learnt."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for i in range(19):
        coarse = Image.fromarray(random.integers(0, 256, (3, 4, 3), dtype=np.uint8))
        coarse.resize((24, 20), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def small(pictures: Path) -> list[str]:
    """Overrides that make the recipe `vqgan-tiny-64` small."""
    return [*SMALL, f"data.path={pictures}"]
