"""Published layouts with keys, shapes and configs changed: `python -m tests.fuzz.layouts --count 10000`."""

from __future__ import annotations

import copy
import importlib
import os
import random
import re
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

import prior
from prior.conversion import SOURCES, Book
from tests.conftest import SHARED
from tests.conversion import test_cosmos, test_dalle_vqvae2, test_maskgit_titok, test_taming
from tests.fuzz import harness
from tests.golden import test_priors
from tests.golden.priors import HOW
from tests.golden.test_families import cases, source
from tests.prior.published import bert, bert_config
from tokenizers_vq.conversion import convert, convert_discriminator
from tokenizers_vq.conversion.checkpoint import read_config, read_tensors

DOCUMENTED = (ValueError, FileNotFoundError)
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 10**9, 10**18, -(2**70), 1.5, -0.5, 1e300, float("inf"), float("nan"), "",
    "x", "16", [], [1], [1, "a"], [[1, 2], [3]], [0, 0], [10**9] * 3, {}, {"a": 1}, [{}], "\x1b[31m",
)  # fmt: skip
_NUMBERS = ("0", "1", "2", "9", "63", "100000", "1000000000", "9" * 25)


def odd(draw: random.Random) -> Any:
    """A value that is seldom what is wanted."""
    return copy.deepcopy(draw.choice(ODD))


class Seed(NamedTuple):
    """A checkpoint of a published layout, of a tokenizer or a prior."""

    source: str
    tensors: dict[str, Tensor]
    config: dict[str, Any] | None
    prior: bool = False
    book: Book | None = None


class Input(NamedTuple):
    """What is converted."""

    source: str
    content: Any
    config: Any
    safetensors: bool
    prior: bool = False
    book: Book | None = None


def prepare() -> None:
    """One thread, and in the parent what each child would import first."""
    torch.set_num_threads(1)
    for module in ("tokenizers_vq._torchvision", "timm.models.vision_transformer", "torch._dynamo"):
        importlib.import_module(module)


@cache
def seeds() -> tuple[Seed, ...]:
    """Small checkpoints of layouts that tests write; where a `shared` folder is, of every recorded one."""
    prepare()
    cosmos = test_cosmos.tokenizer()
    levels = list(cosmos.config.quantizer.levels)
    made = [
        Seed("taming", test_taming.tensors_without_middle_attention(), {"n_embed": 24, "ddconfig": {"resolution": 32}}),
        Seed("dalle", test_dalle_vqvae2.dalle_tensors(), {"image_size": 64}),
        Seed("vqvae2", test_dalle_vqvae2.vqvae2_tensors(), {"size": 64}),
        Seed("maskgit", test_maskgit_titok.maskgit_keys(test_maskgit_titok.maskgit()), {"resolution": 32}),
        Seed("titok", test_maskgit_titok.titok_keys(test_maskgit_titok.titok("two")), None),
        Seed("cosmos", test_cosmos.reference_keys(cosmos.state_dict()), {"levels": levels}),
    ]
    for case in cases() if (SHARED / "golden").is_dir() else []:
        weights, config = source(SHARED / "golden" / case)
        if weights.is_dir():
            config = weights / "config.json" if config is None else config
        files = sorted(weights.glob("diffusion*.safetensors")) if weights.is_dir() else [weights]
        read = [read_tensors(file, "state_dict", "model", "ema", "vae") for file in files]
        tensors = {key: tensor for part in read for key, tensor in part.items()}
        made.append(Seed(case.split("/")[0], tensors, read_config(config)))
    return (*made, *_priors())


def _priors() -> list[Seed]:
    made = [Seed("maskgit-transformer", bert()[1], bert_config(), prior=True)]
    for case in test_priors.cases() if (SHARED / "golden").is_dir() else []:
        folder, name = SHARED / "golden" / case, case.split("/")[0]
        tensors = read_tensors(test_priors.weights(folder), *SOURCES[name].wrappers)
        config = HOW[name].config(folder) or read_config(test_priors.config(folder))
        whole = prior.convert(name, test_priors.weights(folder), config, book=HOW[name].book(folder))
        # Files of training hold the tokenizer beside the transformer, which alone is changed here.
        quantizer = whole.network.book
        book = None if quantizer is None else Book(whole.config.book, quantizer.state_dict())
        made.append(Seed(name, tensors, config, True, book))
    return made


def make(number: int) -> Input:
    """A seed with keys, tensors or values of its config changed."""
    draw = random.Random(number)
    seed = seeds()[number % len(seeds())]
    tensors: dict[Any, Any] = dict(seed.tensors)
    config = copy.deepcopy(seed.config)
    for _ in range(draw.choice((1, 1, 2, 3))):
        if config and draw.random() < 0.4:
            change_value(config, draw)
        else:
            draw.choice(_CHANGES)(tensors, draw)
    if config and draw.random() < 0.05:
        config = draw.choice((None, {}, {"model": config}, {"model": 3}, {"params": []}))
    plain = all(isinstance(key, str) and isinstance(value, Tensor) for key, value in tensors.items())
    if plain and draw.random() < 0.3 and _apart(tensors):
        return Input(seed.source, {key: value.contiguous() for key, value in tensors.items()}, config, True, *seed[3:])
    content = draw.choice((tensors, {"state_dict": tensors}, {"model": tensors}, {"module": tensors, "x": 1}))
    return Input(seed.source, content, config, False, *seed[3:])


def _apart(tensors: dict[str, Tensor]) -> bool:
    """Whether they can be written as safetensors without becoming far larger."""
    places = [tensor.untyped_storage().data_ptr() for tensor in tensors.values()]
    return len(set(places)) == len(places) and sum(t.numel() for t in tensors.values()) < 10**7


def change_value(config: Any, draw: random.Random) -> None:
    """One value of a config, or of a part of it, replaced or taken out."""
    while True:
        places = list(config) if isinstance(config, dict) else list(range(len(config)))
        place = draw.choice(places)
        inner = config[place]
        if isinstance(inner, (dict, list)) and inner and draw.random() < 0.7:
            config = inner
        elif draw.random() < 0.1:
            del config[place]
            return
        else:
            config[place] = odd(draw)
            return


def _key(tensors: dict[Any, Any], draw: random.Random) -> Any:
    return draw.choice(list(tensors)) if tensors else "none"


def _drop(tensors: dict[Any, Any], draw: random.Random) -> None:
    tensors.pop(_key(tensors, draw), None)


def _renumber(tensors: dict[Any, Any], draw: random.Random) -> None:
    numbered = [key for key in tensors if re.search(r"\d", str(key))]
    if numbered:
        key = draw.choice(numbered)
        spans = list(re.finditer(r"\d+", key))
        span = draw.choice(spans)
        tensors[f"{key[: span.start()]}{draw.choice(_NUMBERS)}{key[span.end() :]}"] = tensors[key]
        if draw.random() < 0.3:
            del tensors[key]


def _rename(tensors: dict[Any, Any], draw: random.Random) -> None:
    key = str(_key(tensors, draw))
    parts = key.split(".")
    parts[draw.randrange(len(parts))] = draw.choice(("", "x", "weight", "module", "\x1b[31m", "0", "é", "a" * 600))
    tensors[".".join(parts)] = tensors.get(key, torch.zeros(1))


def _reshape(tensors: dict[Any, Any], draw: random.Random) -> None:
    key = _key(tensors, draw)
    old = tensors.get(key)
    old = old if isinstance(old, Tensor) else torch.zeros(2, 2)
    shape = list(old.shape)
    if shape and draw.random() < 0.5:
        shape[draw.randrange(len(shape))] = draw.choice((0, 1, 2, 3, 5, 64, 100_000))
        tensors[key] = torch.zeros(1, dtype=old.dtype).expand(shape)
        return
    tensors[key] = draw.choice(
        (
            torch.zeros(()), torch.zeros(0), old[None], old.flatten(), old.movedim(0, -1) if shape else old,
            old[:0] if shape else old, torch.zeros(1).expand(10**6, 10**6), torch.zeros(1).expand(1024, 1024, 3, 3),
        )
    )  # fmt: skip


def _retype(tensors: dict[Any, Any], draw: random.Random) -> None:
    key = _key(tensors, draw)
    if isinstance(tensors.get(key), Tensor):
        kinds = (torch.int64, torch.bool, torch.complex64, torch.float16, torch.float64, torch.uint8, torch.bfloat16)
        tensors[key] = tensors[key].to(draw.choice(kinds))


def _no_tensor(tensors: dict[Any, Any], draw: random.Random) -> None:
    tensors[draw.choice((_key(tensors, draw), 3, ("a", 1), "args", "quantize"))] = odd(draw)


def _prefix(tensors: dict[Any, Any], draw: random.Random) -> None:
    prefix = draw.choice(("model.", "module.", "_orig_mod.", "first_stage_model.", "a.b.c.d.", "encoder."))
    changed = {f"{prefix}{key}": value for key, value in tensors.items()}
    tensors.clear()
    tensors.update(changed)


def _multiply(tensors: dict[Any, Any], draw: random.Random) -> None:
    """Thousands of keys like one."""
    numbered = [key for key in tensors if re.search(r"\d", str(key))]
    if numbered and draw.random() < 0.3:
        key = draw.choice(numbered)
        span = draw.choice(list(re.finditer(r"\d+", key)))
        for number in range(draw.choice((100, 20_000))):
            tensors[f"{key[: span.start()]}{number}{key[span.end() :]}"] = tensors[key]


_CHANGES: tuple[Callable[[dict[Any, Any], random.Random], None], ...] = (
    _drop, _renumber, _renumber, _rename, _reshape, _reshape, _reshape, _retype, _no_tensor, _prefix, _multiply,
)  # fmt: skip


def call(value: Input) -> None:
    """Convert it, the discriminator too."""
    path = Path(tempfile.gettempdir()) / f"layout-{os.getpid()}.{'safetensors' if value.safetensors else 'pt'}"
    if value.safetensors:
        save_file(value.content, path)
    else:
        torch.save(value.content, path)
    try:
        if value.prior:
            prior.convert(value.source, path, value.config, book=value.book)
            return
        convert(value.source, path, value.config)
        convert_discriminator(value.source, path, value.config)
    finally:
        path.unlink()


if __name__ == "__main__":
    harness.main(make, call, DOCUMENTED, "layouts")
