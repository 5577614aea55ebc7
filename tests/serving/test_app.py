"""The app of `tvq serve` in process: its queue, its patience, what it says to mistakes of its owner."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

import tokenizers_vq as tvq
from prior.conditions import ClassConfig, ImageConfig
from prior.conditions.several import SeveralCondition
from prior.serving import open_drawer
from tests.prior.conftest import save_tokenizer
from tests.prior.test_inpainting import prior_of
from tokenizers_vq.cli import main
from tokenizers_vq.encoding import BatchEncoder
from tokenizers_vq.serving import server
from tokenizers_vq.serving.app import make_app
from tokenizers_vq.serving.batching import Batcher
from tokenizers_vq.serving.limits import Limits


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> BatchEncoder:
    folder = save_tokenizer(tmp_path_factory.mktemp("app") / "a", 1)
    return BatchEncoder(folder, device="cpu", precision="fp32")


def test_what_waits_is_computed_together_and_never_cut() -> None:
    batches: list[tuple[str, list[int]]] = []

    def compute(key: str, items: Sequence[int]) -> list[int]:
        time.sleep(0.02)
        batches.append((key, list(items)))
        if 13 in items:
            raise ValueError("13")
        return [item * 2 for item in items]

    async def ask() -> list[Any]:
        batcher = Batcher(compute, rows=4, wait=0.01)
        batcher.start()
        jobs = [
            batcher.submit("a", 1, 3),
            batcher.submit("b", 2, 1),
            batcher.submit("a", 3, 2),
            batcher.submit("a", 4, 2),
        ]
        jobs += [batcher.submit("c", 13, 1), batcher.submit("c", 5, 1)]
        found = await asyncio.gather(*jobs, return_exceptions=True)
        await batcher.close()
        return found

    found = asyncio.run(ask())
    assert found[:4] == [2, 4, 6, 8] and str(found[4]) == "13" and found[5] == 10
    assert batches == [("a", [1]), ("b", [2]), ("a", [3, 4]), ("c", [13, 5]), ("c", [13]), ("c", [5])]


def answers(encoder: BatchEncoder, limits: Limits, asks: Sequence[dict[str, Any]]) -> list[httpx.Response]:
    app = make_app(encoder, "a", limits)

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://x") as one:
            return list(await asyncio.gather(*(one.post("/decode", **ask) for ask in asks)))

    return asyncio.run(run())


def test_a_full_queue_refuses_and_says_when_to_come_again(encoder: BatchEncoder) -> None:
    ask = {"json": {"codes": [[0] * 16] * 2}}
    found = answers(encoder, Limits(batch=2, queue=4, wait=0.2), [ask] * 5)
    assert sorted(one.status_code for one in found) == [200, 200, 503, 503, 503]
    refused = next(one for one in found if one.status_code == 503)
    assert refused.headers["retry-after"] == "1" and refused.json()["error"].startswith("busy: 4 images")


def test_a_body_that_stops_is_given_up(encoder: BatchEncoder) -> None:
    async def slow() -> Any:
        yield b"{"
        await asyncio.sleep(5)

    (found,) = answers(encoder, Limits(patience=0.05), [{"content": slow()}])
    assert found.status_code == 408 and "0.05 seconds" in found.json()["error"]


def test_without_a_prior_nothing_is_drawn(encoder: BatchEncoder) -> None:
    app = make_app(encoder, "a")
    assert "/sample" not in app.openapi()["paths"]


def test_connections_that_ask_nothing_are_closed(encoder: BatchEncoder) -> None:
    listener = server.listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    ready = threading.Event()
    threading.Thread(
        target=server.run, args=(make_app(encoder, "a"), listener, lambda _: ready.set(), 0.1), daemon=True
    ).start()
    assert ready.wait(30)
    for said in (b"", b"POST /encode HT", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET"):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
            raw.sendall(said)
            while raw.recv(4096):
                pass  # until it is closed


def test_no_text_of_a_request_is_a_file(encoder: BatchEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = ImageConfig(tokenizer=encoder.name)._of_tokenizer().build(8)
    file = tmp_path / "x.png"
    Image.new("RGB", (16, 16), "red").save(file)
    assert (told.resolve(str(file), 1)[0] >= 0).all()  # as a person says it

    def picture(text: str) -> Image.Image:
        assert text == str(file)
        return Image.new("RGB", (16, 16), "blue")

    blue = told.resolve(told.received(str(file), picture), 1)[0]
    assert torch.equal(blue, told.picture_codes(tvq.images.read(picture(str(file)))))
    assert torch.equal(told.resolve(told.received([str(file), None], picture), 2)[0][0], blue[0])
    both = SeveralCondition([told, ClassConfig(num_classes=2).build(8)])
    rows = both.received([{"image": str(file), "class": 1}] * 2, picture)
    assert torch.equal(both.resolve(both.own(rows), 2)[0], blue.expand(2, -1))


def test_mistakes_of_its_owner_are_one_line(
    encoder: BatchEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_tokenizer(tmp_path / "other", 2)
    prior_of(tvq.load(other), "gpt", tokenizer=str(other)).save_pretrained(tmp_path / "prior")
    with pytest.raises(ValueError, match="is of another tokenizer"):
        open_drawer([str(tmp_path / "prior")], encoder)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as stop:
        main(["serve", str(other), "--port", str(taken.getsockname()[1])])
    assert stop.value.code == 2
    assert "Address already in use): give another --host or --port" in capsys.readouterr().err


def test_a_damaged_picture_is_named_by_its_place(encoder: BatchEncoder) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    app = make_app(encoder, "a")

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://x") as one:
            return await one.post("/encode", content=buffer.getvalue()[:40], headers={"content-type": "image/png"})

    found = asyncio.run(run())
    assert found.status_code == 422 and found.json()["error"].startswith("images.0: not a readable image")
