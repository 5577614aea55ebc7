"""`tvq serve` under load on loopback: p50, p99 and images a second beside the bare network; malformed requests.

    python -m tests.benchmarks.serve --pictures ../shared/data/photos-256 --requests 600 --clients 1 8 32
    python -m tests.benchmarks.serve --malformed 1000 --requests 0

Server, clients and network share the processor, so that the share of the bare network is the worst that a client sees.
`differ` counts codes that are not those that the library gives the same picture alone.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from tests.fuzz.requests import make
from tokenizers_vq.encoding import BatchEncoder


class Answer(NamedTuple):
    seconds: float
    status: int
    body: bytes


def pictures(folder: str | None, count: int) -> list[bytes]:
    """Files of a folder, in turn; or noise."""
    if folder is not None:
        paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
        return [paths[number % len(paths)].read_bytes() for number in range(count)]
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def call(
    connection: http.client.HTTPConnection, method: str, path: str, headers: dict[str, str], body: bytes
) -> Answer:
    """One request over a connection that is kept."""
    begin = time.perf_counter()
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        found = answer.status, answer.read()
    except (http.client.HTTPException, OSError):  # closed meanwhile: begin again
        connection.close()
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        found = answer.status, answer.read()
    return Answer(time.perf_counter() - begin, *found)


def load(port: int, files: Sequence[bytes], clients: int) -> tuple[list[Answer], float]:
    """The files, by so many clients, each of which sends its next when it has its answer; and the seconds of all."""

    def client(first: int) -> list[Answer]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        kind = {"content-type": "application/octet-stream"}
        return [call(connection, "POST", "/encode", kind, one) for one in files[first::clients]]

    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        parts = list(pool.map(client, range(clients)))
    seconds = time.perf_counter() - begin
    found: list[Answer | None] = [None] * len(files)
    for first, part in enumerate(parts):
        found[first::clients] = part
    return [one for one in found if one is not None], seconds


def bare(encoder: BatchEncoder, batch: int, seconds: float) -> float:
    """Images a second of `BatchEncoder.encode` alone."""
    size = encoder.image_size
    images = torch.rand(batch, encoder.channels, *((size, size) if isinstance(size, int) else size)) * 2 - 1
    encoder.encode(images)
    done, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        encoder.encode(images)
        done += batch
    return done / (time.perf_counter() - begin)


def row(name: str, answers: Sequence[Answer], seconds: float, network: float, codes: Sequence[list[int]]) -> None:
    """A line of the table."""
    refused = sum(one.status != 200 for one in answers)
    times = sorted(1e3 * one.seconds for one in answers)
    p99 = times[min(len(times) - 1, int(0.99 * len(times)))]
    rate = len(answers) / seconds
    got = [json.loads(one.body)["codes"][0] for one in answers if one.status == 200]
    differ = sum(a != b for mine, yours in zip(got, codes, strict=True) for a, b in zip(mine, yours, strict=True))
    print(
        f"{name:<28} p50 {statistics.median(times):8.1f} ms  p99 {p99:8.1f} ms  {rate:8.1f} images/s  "
        f"{rate / network:5.0%} of the network  refused {refused}  differ {differ} of {sum(map(len, got))}"
    )


def malformed(port: int, count: int, length: int) -> None:
    """Malformed requests in turn: how many are answered with which status, and whether the server lives."""
    (picture,) = pictures(None, 1)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    answers = [call(connection, *make(number, length, picture)) for number in range(count)]
    statuses = Counter(one.status for one in answers)
    lines = sum(list(json.loads(one.body)) == ["error"] and b"\n" not in one.body for one in answers)
    alive = call(connection, "GET", "/health", {}, b"").status == 200
    listed = ", ".join(f"{status}: {number}" for status, number in sorted(statuses.items()))
    slowest = 1e3 * max(one.seconds for one in answers)
    print(f"{count} malformed requests: {listed}; {lines} in one line; slowest {slowest:.0f} ms; alive after: {alive}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="vit-vqgan-tiny-64")
    options.add_argument("--prior", help="also serve this prior")
    options.add_argument("--pictures", help="folder of pictures to send; unset: noise")
    options.add_argument("--requests", type=int, default=200, help="one picture each")
    options.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    options.add_argument("--batch-size", type=int, nargs="+", default=[32, 1], help="of the server")
    options.add_argument("--precision", default="fp32")
    options.add_argument("--seconds", type=float, default=3.0, help="that the bare network is measured")
    options.add_argument("--malformed", type=int, default=0)
    given = options.parse_args()
    torch.set_num_threads(1)
    encoder = BatchEncoder(given.model, device="cpu", precision=given.precision)
    files = pictures(given.pictures, given.requests)
    codes = [encoder({"image": [one]})["codes"][0].tolist() for one in files]
    rates = {batch: bare(encoder, batch, given.seconds) for batch in (1, 32)} if files else {}
    for batch, rate in rates.items():
        print(f"bare network, batch {batch}: {rate:.1f} images/s")
    for batch in given.batch_size:
        command = [sys.executable, "-m", "tokenizers_vq", "serve", given.model, "--port", "0", "--device", "cpu"]
        command += ["--precision", given.precision, "--batch-size", str(batch)]
        command += ["--prior", given.prior] if given.prior else []
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert server.stdout is not None
        port = int(server.stdout.readline().rsplit(":", 1)[1])
        try:
            for clients in given.clients if files else ():
                answers, seconds = load(port, files, clients)
                row(f"batch {batch}, {clients} clients", answers, seconds, rates[32], codes)
            if given.malformed:
                malformed(port, given.malformed, encoder.layout.length)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
