"""Malformed requests, each known by its number: none may be answered with anything but a refusal of one line."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple

JSON = {"content-type": "application/json"}
JUNK: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**70,
    1.5,
    float("nan"),
    "",
    "x",
    "/etc/passwd",
    "http://127.0.0.1/",
    [],
    {},
    [[]],
)
JUNK += ({"a": 1}, [None], "\ud800", "A" * 5000, "data:image/png;base64,AAAA", "../../x.png")


class Ask(NamedTuple):
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def make(number: int, length: int, picture: bytes) -> Ask:
    """Request `number`, for images of `length` codes; `picture` is a sound PNG."""
    rng = random.Random(number)
    kind = KINDS[number % len(KINDS)]
    return kind(rng, length, picture)


def _sound(path: str, length: int, picture: bytes) -> dict[str, Any]:
    text = base64.b64encode(picture).decode()
    return {
        "/encode": {"images": [text]},
        "/decode": {"codes": [[0] * length]},
        "/sample": {"n": 1, "condition": 0},
        "/inpaint": {"image": text, "mask": text, "n": 1},
    }[path]


def _field(rng: random.Random, length: int, picture: bytes) -> Ask:
    """A value that its field cannot have."""
    path, name, values = rng.choice(
        (
            ("/encode", "images", list(JUNK)),
            ("/encode", "images", [[junk] for junk in JUNK]),
            ("/decode", "codes", list(JUNK)),
            ("/decode", "codes", [[[junk] * length] for junk in JUNK]),
            ("/decode", "codes", [[[0] * other] for other in (0, 1, length - 1, length + 1, 3 * length)]),
            ("/decode", "codes", [[[0] * length] * 4000]),
            ("/decode", "fingerprint", [1, "", "x", ["x"]]),
            ("/decode", "format", [None, 1, "jpg", "../x", ["png"]]),
            ("/sample", "n", [None, True, 0, -1, 1.5, "1", 10**6, 2**70, [1]]),
            ("/sample", "first", [None, True, -1, 1.5, "1", 2**70]),
            (
                "/sample",
                "condition",
                [True, -1, 10**6, 2**70, 1.5, "no such", {"text": "x"}, {"class": 0, "x": 1}, [0, 0]],
            ),
            ("/sample", "sampler", [None, [], {"self": 1}, {"seed": 1.5}, {"seed": 2**90}, {"top_p": 7}, {"x": 1}]),
            ("/sample", "sampler", [{"temperature": "hot"}, {"temperature": float("nan")}, {"guidance": None}]),
            ("/inpaint", "image", list(JUNK)),
            ("/inpaint", "mask", list(JUNK)),
            ("/inpaint", "ring", [-1, 1.5, "1", 10**9]),
            ("/inpaint", "keep_pixels", [1, "yes", None]),
        )
    )
    return _post(path, {**_sound(path, length, picture), name: rng.choice(values)})


def _surplus(rng: random.Random, length: int, picture: bytes) -> Ask:
    path = rng.choice(("/encode", "/decode", "/sample", "/inpaint"))
    return _post(
        path, {**_sound(path, length, picture), rng.choice(("path", "url", "file", "__class__")): "/etc/passwd"}
    )


def _missing(rng: random.Random, length: int, picture: bytes) -> Ask:
    path = rng.choice(("/encode", "/decode", "/inpaint"))
    return _post(path, dict(list(_sound(path, length, picture).items())[1:]))


def _no_json(rng: random.Random, length: int, picture: bytes) -> Ask:
    path = rng.choice(("/encode", "/decode", "/sample", "/inpaint"))
    sound = json.dumps(_sound(path, length, picture)).encode()
    broken = (
        sound[: rng.randrange(1, len(sound))],
        rng.randbytes(rng.randrange(1, 400)),
        b"[" * rng.randrange(1, 200_000),
        b'{"images":' * rng.randrange(1, 5000),
        b"[1e9999]",
        b"\xff\xfe" + sound,
        sound + b"x",
        b"null",
        b'"x"',
        b"[]",
        b"",
    )
    return Ask("POST", path, JSON, rng.choice(broken))


def _no_picture(rng: random.Random, length: int, picture: bytes) -> Ask:
    cut = picture[: rng.randrange(0, len(picture) - 30)]
    spoilt = bytearray(picture)
    spoilt[rng.randrange(8)] ^= 1 + rng.randrange(255)  # the signature
    heads = (
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"RIFF\0\0\0\0WEBPVP8X",
        b"GIF89a",
        b"\x93NUMPY\x01\x00",
        b"II*\0",
    )
    data = rng.choice((cut, bytes(spoilt), rng.choice(heads) + rng.randbytes(rng.randrange(60))))
    if rng.random() < 0.5:
        return Ask("POST", "/encode", {"content-type": rng.choice(("image/png", "application/octet-stream"))}, data)
    return _post("/encode", {"images": [base64.b64encode(data).decode()]})


def _elsewhere(rng: random.Random, length: int, picture: bytes) -> Ask:
    path = rng.choice(("/encode", "/decode", "/sample", "/inpaint"))
    body = json.dumps(_sound(path, length, picture)).encode()
    wrong = (
        Ask(rng.choice(("GET", "PUT", "DELETE", "PATCH", "OPTIONS")), path, JSON, b""),
        Ask(
            "POST",
            rng.choice(("/", "/etc/passwd", "/encode/../../x", "//x", f"{path}x", "/health", "/docs")),
            JSON,
            body,
        ),
        Ask("POST", path, {"content-type": rng.choice(("text/plain", "multipart/form-data", "text/html", ";;"))}, body),
    )
    return rng.choice(wrong)


def _post(path: str, body: Any) -> Ask:
    return Ask("POST", path, JSON, json.dumps(body).encode())


KINDS: tuple[Callable[[random.Random, int, bytes], Ask], ...] = (
    _field,
    _surplus,
    _missing,
    _no_json,
    _no_picture,
    _elsewhere,
    _field,
)
