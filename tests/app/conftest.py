"""Small untrained models for the page, pictures to drop, the page as a process of its own, a browser."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.conftest import tvq_command  # noqa: F401  (a fixture)
from tests.conftest import ROOT, missing
from tests.stand_ins import make_prior, make_tokenizer

SIDE = 16


class Folders(NamedTuple):
    tokenizer: Path
    prior: Path


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A tokenizer of 16 x 16 pixels and a prior of three classes."""
    root = tmp_path_factory.mktemp("app")
    tokenizer = make_tokenizer()
    drawn = tokenizer.encode_features(torch.rand(16, 3, SIDE, SIDE) * 2 - 1).movedim(1, -1).flatten(0, -2)
    with torch.no_grad():  # so that its codes tell pictures apart
        tokenizer.quantizer.codebook.copy_(drawn[:: len(drawn) // 16][:16])
    tokenizer.save_pretrained(root / "tok")
    make_prior(tokenizer, str(root / "tok")).save_pretrained(root / "pri")
    return Folders(root / "tok", root / "pri")


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph-like picture, wider than high."""
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8))
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    coarse.resize((96, 64), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="session")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 million pixels in a small file."""
    path = tmp_path_factory.mktemp("pictures") / "huge.png"
    Image.new("1", (6000, 5000)).save(path)
    return path


# The page, in a process that may reach nothing but itself; what it tries elsewhere is said on stderr.
GUARDED = """
import socket, sys
connect = socket.socket.connect
def guard(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        print("LEFT THE MACHINE:", address, file=sys.stderr, flush=True)
        raise OSError("the network is off")
    return connect(self, address)
socket.socket.connect = guard
from tokenizers_vq.cli import main
main(sys.argv[1:])
"""


class Page(NamedTuple):
    address: str
    errors: Path
    """what the process says on stderr"""


@pytest.fixture(scope="session")
def served(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """`tvq app`, on a free port."""
    if importlib.util.find_spec("gradio") is None:
        missing("needs gradio: pip install 'tokenizers-vq[app]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log")
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "GRADIO_TEMP_DIR": str(log / "files")}
    command = [sys.executable, "-c", GUARDED, "app", *map(str, folders), "--port", str(port), "--device", "cpu"]
    with (log / "out").open("wb") as out, (log / "err").open("wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=log, env=environment)
        try:
            deadline = time.monotonic() + 180
            while not (said := (log / "out").read_text()):
                assert process.poll() is None and time.monotonic() < deadline, (log / "err").read_text()
                time.sleep(0.1)
            yield Page(said.split()[0], log / "err")
        finally:
            process.terminate()
            process.wait(120)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; closed with the module, since the loop it runs in would refuse any other in this thread."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if importlib.util.find_spec("playwright") is None or found is None:
        missing("needs Chromium and playwright to look at a page")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        quiet = ["--no-sandbox", "--disable-background-networking", "--enable-unsafe-swiftshader"]
        started = playwright.chromium.launch(executable_path=found, args=quiet)
        yield started
        started.close()
