"""One tokenizer in several threads at once gives each what it gives alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.laws.test_tokenizers import NARROW, narrow, picture, same


@pytest.mark.parametrize("preset", NARROW)
def test_threads_get_the_codes_and_images_of_one(preset: str) -> None:
    tokenizer = narrow(preset)
    images = picture(tokenizer.config.channels, *tokenizer.config.size)
    codes = tokenizer.encode(images)
    decoded = tokenizer.decode(codes)

    def equal(_: int) -> bool:
        return same(tokenizer.encode(images), codes) and torch.equal(tokenizer.decode(codes), decoded)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(equal, range(8 * 4)))
