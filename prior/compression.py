"""Codes as bytes by arithmetic coding under an exact prior: about as many bits as its cross-entropy says.

A range coder (`constriction.stream.queue`; Martin 1979) is told, place by place, the prior's
probabilities of the code that comes next. Packing and unpacking walk through the same cached steps with the same rows
in a batch, so the probabilities agree bitwise on one kind of machine, with one version of torch and one number of
threads; the file names these, and is refused elsewhere.

A file of `compress` is, one after the other:

| bytes | what |
| --- | --- |
| 8 | `\\x89TVQP\\r\\n\\x01`: the magic; its last byte is the version of the format |
| 4 | length of the header, little-endian |
| ... | the header: JSON, deflated (zlib); `Header` has its fields |
| ... | the codes: 32-bit words of the range coder, little-endian |
| 32 | SHA-256 of all bytes before |
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from prior.decoding import short
from prior.model import Prior
from prior.networks.base import Exact
from prior.sequences import LayoutConfig
from tokenizers_vq.config import Config, parse
from tokenizers_vq.text import parse_json

MAGIC = b"\x89TVQP\r\n\x01"
_CHECK, _MOST_HEADER = 32, 2**28


class Header(Config):
    """What stands before the codes."""

    model_config = ConfigDict(extra="forbid")

    prior: str
    """`prior_hash` of the prior"""
    tokenizer: str | None
    """fingerprint of the tokenizer that made the codes"""
    layout: LayoutConfig
    """layout of the codes"""
    rows: int
    """images"""
    batch_size: int
    """rows that are coded beside each other"""
    words: int
    """32-bit words of codes"""
    codes: str
    """SHA-256 of the codes, as int64 little-endian"""
    precision: str
    """dtype that the prior computes in"""
    machine: dict[str, Any]
    """versions and everything else that the probabilities depend on, as `machine` gives it"""
    told: Any = None
    """what the prior is told: a value for all rows, or one for each"""
    about: dict[str, Any] = Field(default_factory=dict)
    """what else the caller keeps"""


class Opened(NamedTuple):
    """What a file holds."""

    codes: Tensor
    """int64 `(n, N)`"""
    header: Header


def compress(
    prior: Prior,
    codes: Tensor,
    condition: Any = None,
    *,
    batch_size: int = 32,
    about: dict[str, Any] | None = None,
) -> bytes:
    """Codes int64 `(n, N)` -> the bytes of a file. `condition`: as of `Prior.sample`; it is kept in the file.

    `about`: anything that JSON can say, kept too. Raises `ValueError` for a prior that is not exact, for codes that are
    not its own, for a condition that cannot be told or written, and without `constriction`.
    """
    constriction = _constriction()
    network = check_exact(prior)
    prior.sequence.check(codes)
    told = _plain(condition, len(codes))
    encoder = constriction.stream.queue.RangeEncoder()
    model = constriction.stream.model.Categorical(perfect=False)
    with _steady(prior):
        for first in range(0, len(codes), batch_size):
            part = codes[first : first + batch_size].to(prior.device)
            steps = network.walk(prior.context(_some(told, first, len(part)), len(part)))
            logits, place = next(steps, None), 0
            while logits is not None:
                here = part[:, place : place + logits.shape[1]]
                encoder.encode(here.flatten().int().cpu().numpy(), model, _probabilities(logits))
                place += logits.shape[1]
                logits = _sent(steps, here)
    words = encoder.get_compressed().astype("<u4")
    header = Header(
        prior=prior_hash(prior),
        tokenizer=prior.config.fingerprint,
        layout=prior.config.layout,
        rows=len(codes),
        batch_size=batch_size,
        words=len(words),
        codes=_digest(codes),
        precision=_precision(prior),
        machine=machine(prior.device),
        told=told,
        about=about or {},
    )
    described = zlib.compress(json.dumps(header.to_dict(), ensure_ascii=False).encode(), 9)
    content = MAGIC + struct.pack("<I", len(described)) + described + words.tobytes()
    return content + hashlib.sha256(content).digest()


def decompress(prior: Prior, data: bytes, name: str = "the file") -> Opened:
    """The codes of `compress`. `name`: of the file, for errors.

    Raises `ValueError` where the bytes were cut or altered, where they are of another prior, or were written with other
    versions or on another kind of machine, whose probabilities may differ in their last bit.
    """
    header, words = read(data, name)
    network = check_exact(prior)
    _check(prior, header, name)
    constriction = _constriction()
    decoder = constriction.stream.queue.RangeDecoder(words)
    model = constriction.stream.model.Categorical(perfect=False)
    found = torch.empty(header.rows, prior.layout.length, dtype=torch.int64)
    with _steady(prior, header.machine["threads"]):
        for first in range(0, header.rows, header.batch_size):
            part = found[first : first + header.batch_size]
            steps = network.walk(prior.context(_some(header.told, first, len(part)), len(part)))
            logits, place = next(steps, None), 0
            while logits is not None:
                drawn = torch.from_numpy(decoder.decode(model, _probabilities(logits))).long()
                here = drawn.view(len(part), -1)
                part[:, place : place + logits.shape[1]] = here
                place += logits.shape[1]
                logits = _sent(steps, here.to(prior.device))
    if _digest(found) != header.codes:
        raise ValueError(
            f"{name} cannot be unpacked here: this machine's probabilities differ from those that it was packed with"
        )
    return Opened(found, header)


def read(data: bytes, name: str = "the file") -> tuple[Header, np.ndarray]:
    """The header and the coder's words uint32, checked. Raises `ValueError` where they were cut or altered."""
    if not data.startswith(MAGIC[:5]):
        raise ValueError(f"{name} is not a file of `tvq-prior compress`")
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError(f"{name} was altered, or is of another version of the format than this one reads")
    start = len(MAGIC) + 4
    whole = len(data) >= start + _CHECK and hashlib.sha256(data[:-_CHECK]).digest() == data[-_CHECK:]
    if not whole:
        raise ValueError(
            f"{name} was cut or altered: its checksum does not match; copy it again from where it was made"
        )
    (length,) = struct.unpack("<I", data[start - 4 : start])
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data[start : start + length], _MOST_HEADER).decode()
        header = parse(Header, parse_json(text, _MOST_HEADER), name)
    except (zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: its header cannot be read: {error}") from None
    words = np.frombuffer(data[start + length : -_CHECK], dtype="<u4")
    if len(words) != header.words or header.rows < 0 or header.batch_size < 1:
        raise ValueError(f"{name}: its header does not match its length: it was not written by `tvq-prior compress`")
    return header, words.astype(np.uint32)


def prior_hash(prior: Prior) -> str:
    """SHA-256 of all weights and of the config without names of places: equal where probabilities are."""
    config = {**prior.config.to_dict(), "tokenizer": None}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(prior.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def machine(device: torch.device) -> dict[str, Any]:
    """What probabilities depend on beside the prior: versions, the kind of processor, threads."""
    cuda = device.type == "cuda"
    return {
        "torch": torch.__version__,
        "constriction": _version("constriction"),
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "processor": "" if cuda else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def payload_bits(data: bytes) -> int:
    """Bits of the codes alone, without header and checksum."""
    return 32 * read(data)[0].words


def check_exact(prior: Prior) -> Exact:
    """The network. Raises `ValueError` for a chain, and where its likelihood is a bound."""
    if not isinstance(prior, Prior):
        raise ValueError(
            f"codes are compressed by one prior, not by a {type(prior).__name__.lower()}: take a prior of all grids"
        )
    network = prior.network
    if not isinstance(network, Exact):
        raise ValueError(
            f"a {prior.config.network.kind} prior knows a bound of the likelihood alone, and codes are compressed by "
            "exact probabilities: take an autoregressive prior (gpt, rq) or a var one"
        )
    return network


def _check(prior: Prior, header: Header, name: str) -> None:
    """Raises `ValueError` for another prior, and for what may change its probabilities."""
    if header.tokenizer != prior.config.fingerprint:
        raise ValueError(
            f"{name} holds codes of another tokenizer ({short(header.tokenizer)}) than this prior's "
            f"({short(prior.config.fingerprint)})"
        )
    if (own := prior_hash(prior)) != header.prior:
        raise ValueError(
            f"{name} was packed with another prior ({short(header.prior)}) than this one ({short(own)}): give that one"
        )
    if header.layout != prior.config.layout:
        raise ValueError(f"{name}: its header names another layout than its prior has")
    now = {"precision": _precision(prior), **machine(prior.device)}
    then = {"precision": header.precision, **header.machine}
    for what in (key for key in now if key != "threads"):
        if then.get(what) != now[what]:
            raise ValueError(
                f"{name} was packed with {what} {then.get(what)}, here it is {now[what]}: the probabilities may differ "
                "in their last bit; unpack it where it was packed"
            )
    threads = then.get("threads")
    if not isinstance(threads, int) or not 1 <= threads <= 4096:
        raise ValueError(f"{name}: its header names {threads!r} threads")


def _probabilities(logits: Tensor) -> np.ndarray:
    """Logits `(B, n, K)` -> float64 `(B n, K)`."""
    return logits.flatten(0, 1).double().softmax(dim=-1).cpu().numpy()


def _sent(steps: Any, codes: Tensor) -> Tensor | None:
    """The next logits of a walk; None at its end."""
    try:
        return steps.send(codes)
    except StopIteration:
        return None


@contextmanager
def _steady(prior: Prior, threads: int | None = None) -> Iterator[None]:
    """The prior in eval mode, without gradient, with this number of threads."""
    was_training, before = prior.training, torch.get_num_threads()
    prior.eval()
    try:
        if threads is not None and threads != before:
            torch.set_num_threads(threads)
        with torch.inference_mode():
            yield
    finally:
        if threads is not None and threads != before:
            torch.set_num_threads(before)
        prior.train(was_training)


def _plain(condition: Any, n: int) -> Any:
    """A condition as JSON keeps it: None, one value, or a list of `n`. Raises `ValueError` for what it cannot."""

    def plain(value: Any) -> Any:
        return value.tolist() if isinstance(value, (Tensor, np.ndarray)) else value

    told = plain(condition)
    if isinstance(told, dict):
        columns = {name: plain(value) for name, value in told.items()}
        told = columns
        if any(isinstance(value, (list, tuple)) and len(value) == n for value in columns.values()):
            whole = {k: v if isinstance(v, (list, tuple)) else [v] * n for k, v in columns.items()}
            told = [{name: plain(value[row]) for name, value in whole.items()} for row in range(n)]
    elif isinstance(told, (list, tuple)):
        told = [plain(value) for value in told]
    try:
        return json.loads(json.dumps(told))
    except (TypeError, ValueError):
        raise ValueError(
            f"a compressed file keeps what the prior was told, and {type(condition).__name__} cannot be written: "
            "classes and texts can"
        ) from None


def _some(told: Any, first: int, count: int) -> Any:
    """What rows `first, ...` are told."""
    return list(told[first : first + count]) if isinstance(told, (list, tuple)) else told


def _precision(prior: Prior) -> str:
    return str(next(prior.parameters()).dtype).removeprefix("torch.")


def _digest(codes: Tensor) -> str:
    return hashlib.sha256(codes.cpu().contiguous().numpy().astype("<i8").tobytes()).hexdigest()


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _constriction() -> Any:
    try:
        import constriction
    except ModuleNotFoundError:
        raise ValueError("compression needs constriction: pip install 'tokenizers-vq[compress]'") from None
    return constriction
