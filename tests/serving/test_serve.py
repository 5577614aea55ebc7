"""`tvq serve`: a real server, whose answers are the library's, and which strangers cannot bring down."""

from __future__ import annotations

import base64
import io
import json
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

import tokenizers_vq as tvq
from prior.inpainting import inpaint
from prior.model import Prior
from tests.fuzz.requests import make
from tests.prior.conftest import save_tokenizer
from tests.prior.test_inpainting import prior_of
from tokenizers_vq.encoding import BatchEncoder


class Served(NamedTuple):
    url: str
    encoder: BatchEncoder
    prior: Prior
    process: subprocess.Popen[str]
    client: httpx.Client

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.client.post(path, json=body, **options)


def start(tokenizer: Path, prior: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "tokenizers_vq", "serve", str(tokenizer), "--prior", str(prior), "--port", "0"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    assert line.startswith("serving at http://127.0.0.1:"), line + process.stderr.read()
    return process, line.split()[-1]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    save_tokenizer(folder / "tokenizer", 1)
    tok = tvq.load(folder / "tokenizer")
    prior_of(tok, "maskgit", tokenizer=str(folder / "tokenizer")).save_pretrained(folder / "prior")
    process, url = start(folder / "tokenizer", folder / "prior", "--device", "cpu", "--precision", "fp32")
    try:
        import prior

        encoder = BatchEncoder(folder / "tokenizer", device="cpu", precision="fp32")
        with httpx.Client(base_url=url, timeout=30, limits=httpx.Limits(max_connections=32)) as client:
            yield Served(url, encoder, prior.load(folder / "prior"), process, client)
    finally:
        process.kill()
        process.communicate()


def png(seed: int, side: tuple[int, int] = (20, 24)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*side, 3), dtype=np.uint8)
    return saved(Image.fromarray(pixels))


def saved(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def shown(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    files = [base64.b64decode(one) for one in answer.json()["images"]]
    return np.stack([np.array(Image.open(io.BytesIO(one)).convert("RGB")) for one in files]).astype(int)


def as_uint8(images: torch.Tensor) -> np.ndarray:
    return tvq.images.to_uint8(images).permute(0, 2, 3, 1).numpy().astype(int)


def test_requests_that_come_together_get_the_codes_that_each_has_alone(served: Served) -> None:
    groups = [[png(10 * number + i) for i in range(1 + number % 3)] for number in range(24)]
    before = served.client.get("/health").json()

    def ask(group: list[bytes]) -> list[list[int]]:
        return served.post("/encode", {"images": [text(one) for one in group]}).json()["codes"]

    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(ask, groups))
    for group, codes in zip(groups, found, strict=True):
        alone = served.encoder({"image": group})["codes"]
        assert codes == alone.tolist()
    after = served.client.get("/health").json()
    assert after["images"] - before["images"] == sum(map(len, groups))
    assert after["batches"] - before["batches"] < len(groups), "nothing was computed together"
    one = served.client.post("/encode", content=groups[0][0], headers={"content-type": "image/png"}).json()
    assert one == {"codes": found[0], "fingerprint": served.encoder.fingerprint}


def test_codes_come_back_as_the_librarys_pictures(served: Served) -> None:
    rows = torch.randint(16, (6, 16), generator=torch.Generator().manual_seed(0))
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda row: served.post("/decode", {"codes": [row]}), rows.tolist()))
    for row, answer in zip(rows, answers, strict=True):
        # Of a batch the last bits may differ, and with them a value's rounding.
        assert np.abs(shown(answer) - as_uint8(served.encoder.decode(row[None]))).max() <= 1
    raw = served.post("/decode", {"codes": rows[:1].tolist()}, headers={"accept": "image/png"})
    assert raw.headers["content-type"] == "image/png" and Image.open(io.BytesIO(raw.content)).size == (16, 16)
    floats = served.post("/decode", {"codes": rows[:1].tolist(), "format": "npy"}).json()["images"][0]
    exact = np.load(io.BytesIO(base64.b64decode(floats)))
    assert np.allclose(exact, served.encoder.decode(rows[:1])[0].permute(1, 2, 0).numpy(), atol=1e-5)


def test_samples_drawn_together_are_those_drawn_alone(served: Served) -> None:
    asks = [{"n": 1 + i % 2, "condition": [i % 2] * (1 + i % 2), "sampler": {"seed": i, "steps": 4}} for i in range(6)]
    asks += [{"n": 2, "condition": None, "sampler": {"seed": 3, "steps": 4}, "first": 5}]
    asks += [{"condition": 1, "sampler": {"guidance": 2.0}}]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda ask: served.post("/sample", ask), asks))
    for ask, answer in zip(asks, answers, strict=True):
        codes = served.prior.sample(ask.get("n", 1), ask["condition"], ask["sampler"], first=ask.get("first", 0))
        assert answer.json()["codes"] == codes.tolist()
        images = served.encoder.tokenizer.decode(served.prior.layout.unflatten(codes))
        assert np.abs(shown(answer) - as_uint8(images)).max() <= 1


def test_masked_pixels_are_drawn_as_the_library_does(served: Served) -> None:
    picture, white = png(1, (16, 16)), np.zeros((16, 16), np.uint8)
    white[8:, 8:] = 255
    ask = {"image": text(picture), "mask": text(saved(Image.fromarray(white))), "n": 2, "condition": 0}
    answer = served.post("/inpaint", {**ask, "keep_pixels": True, "sampler": {"seed": 5}})
    image = tvq.images.read(picture)
    mask = torch.from_numpy(white > 0)
    found = inpaint(served.prior, served.encoder.tokenizer, image, mask, 2, 0, {"seed": 5}, keep_pixels=True)
    assert answer.json()["codes"] == found.codes.tolist()
    assert np.array_equal(shown(answer), as_uint8(found.images))


def bomb() -> bytes:
    """A small PNG file of 900 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(30001 * 300))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_too_much_is_refused_before_it_costs(served: Served) -> None:
    refusals = {
        "pixels": served.post("/encode", {"images": [text(bomb())]}),
        "bytes": served.client.post("/encode", content=bytes(17 * 2**20), headers={"content-type": "image/png"}),
        "chunks": served.client.post(
            "/encode", content=(bytes(2**20) for _ in range(20)), headers={"content-type": "image/png"}
        ),
        "images": served.post("/encode", {"images": ["AAAA"] * 33}),
        "samples": served.post("/sample", {"n": 33}),
    }
    for what, answer in refusals.items():
        assert answer.status_code == 413, (what, answer.text)
        assert "\n" not in answer.json()["error"]
    assert "30,000 x 30,000 pixels" in refusals["pixels"].json()["error"]
    slow = served.post("/sample", {"sampler": {"steps": 10**9}})
    assert slow.status_code == 422 and "16 or fewer" in slow.json()["error"]


def test_a_thousand_malformed_requests_are_each_refused_in_a_line(served: Served) -> None:
    picture = png(0)

    def ask(number: int) -> None:
        one = make(number, 16, picture)
        answer = served.client.request(one.method, one.path, headers=one.headers, content=one.body)
        assert 400 <= answer.status_code < 500, (number, one, answer.status_code, answer.text)
        assert list(answer.json()) == ["error"] and "\n" not in answer.json()["error"], (number, answer.text)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(1000)))
    host, port = served.url.removeprefix("http://").split(":")
    for line in (
        b"\0\1\2\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /encode HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"A" * 100_000,
    ):
        with socket.create_connection((host, int(port)), timeout=30) as raw:
            raw.sendall(line)
            assert raw.recv(4096).startswith(b"HTTP/1.1 400")
    assert served.client.get("/health").json()["in_work"] == 0
    assert served.post("/decode", {"codes": [[0] * 16]}).status_code == 200


def test_openapi_describes_every_road(served: Served) -> None:
    described = served.client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/health", "/encode", "/decode", "/sample", "/inpaint"}
    bodies = described["paths"]["/encode"]["post"]["requestBody"]["content"]
    assert set(bodies) == {"application/json", "image/*", "application/octet-stream"}
    assert bodies["application/json"]["schema"]["required"] == ["images"]


def test_asked_to_stop_it_finishes_what_is_in_work(served: Served) -> None:
    """The last test of the module: it stops the server."""
    host, port = served.url.removeprefix("http://").split(":")
    body = json.dumps({"codes": [[0] * 16]}).encode()
    head = f"POST /decode HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as working:
        working.sendall(head.encode() + body[:20])
        assert served.client.get("/health").status_code == 200
        served.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionRefusedError):
            while True:
                socket.create_connection((host, int(port)), timeout=30).close()
                time.sleep(0.05)
        working.sendall(body[20:])
        assert working.recv(4096).startswith(b"HTTP/1.1 200 OK")
    out, err = served.process.communicate(timeout=30)
    assert served.process.returncode == 0 and out == ""
    assert err.splitlines() == [f"{served.encoder.name} on cpu, fp32", "stopped"]
