"""Folders as diffusers and transformers save them: config.json beside weights in one file or several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tokenizers_vq.config import read_json
from tokenizers_vq.conversion.checkpoint import (
    expect,
    read_config,
    read_safetensors,
    read_tensors,
    unwrapped,
    unwrapped_key,
)


def config_beside(path: Path, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """`config`, else the content of config.json in the folder `path` or beside the file; empty where there is none."""
    if config is not None:
        return dict(config)
    file = (path if path.is_dir() else path.parent) / "config.json"
    return read_config(file) or {} if file.is_file() else {}


def weight_files(path: Path, names: Iterable[str]) -> list[Path]:
    """The files of weights of a folder (or `path`, where it is a file): the first of `names` that is there.

    `names` come without ending; .safetensors goes before .bin, and an index of shards after one whole file.
    Raises `ValueError` where there is none.
    """
    if not path.is_dir():
        return [path]
    names = list(names)
    for suffix in ("safetensors", "bin"):
        for name in names:
            whole, index = path / f"{name}.{suffix}", path / f"{name}.{suffix}.index.json"
            if whole.is_file():
                return [whole]
            if index.is_file():
                return _shards(index)
    raise ValueError(f"{path} holds no weights: there is no {' or '.join(f'{name}.safetensors' for name in names)}")


def _shards(index: Path) -> list[Path]:
    parts = read_json(index).get("weight_map")
    named = list(parts.values()) if isinstance(parts, dict) else []
    if not named or not all(isinstance(part, str) and Path(part).name for part in named):
        raise ValueError(f"{index} is not an index of shards: download it again")
    shards = [index.parent / part for part in sorted({Path(part).name for part in named})]
    for shard in shards:
        if not shard.is_file():
            raise FileNotFoundError(f"{index} names {shard.name}, which is not there: download it too")
    return shards


def read_below(files: Iterable[Path], ending: str) -> dict[str, Tensor]:
    """Tensors of one model inside a larger one: those beside the key that ends in `ending`, without their prefix.

    Of a .safetensors file nothing else is read. Raises `ValueError` where no key, or several, end so.
    """
    files = list(files)
    keys = {file: _keys(file) for file in files}
    prefixes = sorted({key.removesuffix(ending) for found in keys.values() for key in found if key.endswith(ending)})
    if len(prefixes) != 1:
        where = files[0] if len(files) == 1 else files[0].parent
        several = f"keys under {' and '.join(map(repr, prefixes))}" if prefixes else "none"
        raise ValueError(f"{where} should hold one {ending}, but holds {several}: give the weights of this source")
    tensors: dict[str, Tensor] = {}
    for file, found in keys.items():
        wanted = {key for key in found if key.startswith(prefixes[0])}
        tensors.update({key.removeprefix(prefixes[0]): tensor for key, tensor in _read(file, wanted).items()})
    return tensors


def _keys(file: Path) -> list[str]:
    if file.suffix != ".safetensors":
        return list(_pickled(file))
    try:
        with safe_open(file, framework="pt") as opened:
            return [unwrapped_key(key) for key in opened.keys()]  # noqa: SIM118  # it is not a mapping
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or not a safetensors file ({error}): download it again") from None


def _read(file: Path, keys: set[str]) -> dict[str, Tensor]:
    if file.suffix != ".safetensors":
        tensors = _pickled(file)
        return {key: tensors[key] for key in tensors if key in keys}
    return unwrapped(read_safetensors(file, lambda key: unwrapped_key(key) in keys), file)


def _pickled(file: Path) -> dict[str, Tensor]:
    return read_tensors(file, "state_dict", "model")


def vq_config(path: Path, config: Mapping[str, Any] | None, *model_types: str) -> dict[str, Any]:
    """transformers' config of the tokenizer, itself or as `vq_config` of a larger model's; empty where there is none.

    Raises `ValueError` where its model_type is none of `model_types`.
    """
    found = config_beside(path, config)
    inner = found.get("vq_config")
    found = dict(inner) if isinstance(inner, Mapping) else found
    given = found.get("model_type", model_types[0])
    if given not in model_types:
        raise ValueError(
            f"{path}: its config is of model_type {given}, not {model_types[0]}: give the source it comes from"
        )
    if found.get("double_latent") or found.get("double_z"):
        raise ValueError(f"{path}: double_latent is not supported, nor can transformers quantize with it")
    expect(found, found, ("model_type", "embed_dim", "num_embeddings", "base_channels", "resolution"), path)
    return found
