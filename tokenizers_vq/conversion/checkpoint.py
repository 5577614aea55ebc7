"""Reading a published checkpoint: tensors by the reference's keys, whatever it is wrapped in, and its config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tokenizers_vq.config import read_json, read_yaml
from tokenizers_vq.conversion import pickles

_WRAPPED = ("module.", "_orig_mod.", "_forward_module.")
"""what DDP, torch.compile and DeepSpeed put before every key"""


def read_config(config: str | Path | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The content of a YAML or JSON file, or of a mapping. Raises one line for a file that is missing or malformed."""
    if config is None:
        return None
    if isinstance(config, Mapping):
        return dict(config)
    if not isinstance(config, (str, Path)):
        raise ValueError(f"a config is a YAML or JSON file or a mapping: got {type(config).__name__} {config!r}")
    path = Path(config)
    if not path.is_file():
        raise FileNotFoundError(f"no config file {path}")
    return read_json(path) if path.suffix == ".json" else read_yaml(path)


def expect(config: Mapping[str, Any] | None, given: Mapping[str, Any], names: Iterable[str], path: Path) -> None:
    """Raises `ValueError` for a `config`, if not empty, whose part with the model's fields, `given`, has none of
    `names`: it is another model's."""
    names = list(names)
    if _says(config) and not set(names) & set(given):
        raise ValueError(
            f"{path}: its config has none of {', '.join(names)}: it is of another model, give this one's or none"
        )


def _says(value: Any) -> bool:
    return any(map(_says, value.values())) if isinstance(value, Mapping) else value is not None


def read_tensors(path: Path, *wrappers: str) -> dict[str, Tensor]:
    """Tensors by key of a .safetensors file, or of a pickle that `torch.save` wrote.

    A pickle's first wrapper that is there ("state_dict", "model" ...) is opened; a module pickled whole gives its
    state_dict. Prefixes that DDP and torch.compile put before every key are taken off. Raises `ValueError` for other
    content.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the checkpoint in it")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is truncated or no safetensors file ({error}): download it again") from None
    content = pickles.read(path)
    for wrapper in wrappers:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), (Mapping, pickles.Inert)):
            content = content[wrapper]
            break
    tensors: dict[str, Tensor] = {}
    if isinstance(content, pickles.Inert):
        tensors = pickles.module_tensors(content, path)
    elif isinstance(content, Mapping):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name, where a checkpoint is wanted")
    while (prefix := next(iter(tensors)).split(".")[0] + ".") in _WRAPPED and all(
        key.startswith(prefix) for key in tensors
    ):
        tensors = below(tensors, prefix)
    return tensors


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose key begins with `prefix`, without it."""
    return {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
