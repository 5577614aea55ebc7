"""The command in process, on a small untrained tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import tokenizers_vq as tvq
from tokenizers_vq.cli import main


class Result(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def tvq_command(capfd) -> Callable[..., Result]:
    """Runs `tvq` with arguments; status, stdout and stderr."""

    def run(*arguments) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Result(int(stop.value.code or 0), out, err)

    return run


def save(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    narrow = ["encoder.width=16", "decoder.width=16", "image_size=32"]
    tvq.create("vqvae-tiny-64", narrow).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "a", 1)


@pytest.fixture(scope="session")
def other(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "b", 2)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Six pictures in two splits, one of them broken."""
    for number in range(6):
        path = tmp_path / "photos" / ("train" if number < 3 else "test") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number == 4:
            path.write_bytes(b"no picture")
        else:
            image = torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(number)) * 2 - 1
            tvq.images.to_pil(image).save(path)
    return tmp_path / "photos"
