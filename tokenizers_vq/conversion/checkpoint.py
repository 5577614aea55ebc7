"""Reading a published checkpoint: tensors by the reference's keys, whatever it is wrapped in, and its config."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tokenizers_vq.config import read_json, read_yaml
from tokenizers_vq.conversion import modules, pickles

_WRAPPING = re.compile(
    r"(?:(?<=\.)|^)(?:module|_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
"""names that DDP, torch.compile, DeepSpeed and Lightning, FSDP and checkpointing put before those of what they wrap"""
_WRAPPERS = ("state_dict", "model", "module", "model_state_dict", "ema", "state_dict_ema", "ema_model")
"""where training checkpoints keep the tensors, if the source does not say: Lightning, others, DeepSpeed, averages"""
_AVERAGE = "ema_model."
_BESIDE_AVERAGE = ("online_model.", "initted", "step")
"""what ema-pytorch keeps beside the averaged model"""
_COUNTERS = ("n_averaged",)
"""what torch's AveragedModel keeps beside the model"""
_DEEPEST = 3


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

    A pickle's first wrapper that is there is opened ("state_dict", "model" ...; those of training frameworks after
    `wrappers`), and those inside it; a module pickled whole gives its state_dict. Names that DDP, torch.compile,
    DeepSpeed, Lightning, FSDP and averages put before or into keys are taken off. Raises `ValueError` for other
    content.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the checkpoint in it")
    content = read_safetensors(path) if path.suffix == ".safetensors" else pickles.read(path)
    return tensors_of(content, path, *wrappers)


def read_safetensors(path: Path, wanted: Callable[[str], bool] = lambda key: True) -> dict[str, Tensor]:
    """The tensors whose key is `wanted`. Raises `ValueError` for a damaged file, and as `modules.by_name`."""
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            if len(keys) > modules.MOST_NAMES:
                raise ValueError(f"{path} holds {len(keys):,} tensors: it is not a checkpoint")
            return modules.by_name({key: file.get_tensor(key) for key in keys if wanted(key)}, path)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({error}): download it again") from None


def tensors_of(content: Any, path: Path, *wrappers: str) -> dict[str, Tensor]:
    """The tensors by name in what a pickle holds, as `read_tensors` gives them. Raises as it does."""
    for _ in range(_DEEPEST):
        held = content if isinstance(content, Mapping) else {}
        names = (name for name in (*wrappers, *_WRAPPERS) if isinstance(held.get(name), (Mapping, pickles.Inert)))
        if (inside := next(names, None)) is None:
            break
        content = held[inside]
    if isinstance(content, pickles.Inert):
        tensors = modules.module_tensors(content, path)
    else:
        tensors = modules.by_name(content, path) if isinstance(content, Mapping) else {}
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name, expected a checkpoint")
    return unwrapped(tensors, path)


def unwrapped(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors by their key without the names of what wraps a model; of an average's file those of the average.

    Raises `ValueError` where two keys differ by such a name alone.
    """
    if any(key.startswith(_AVERAGE) for key in tensors):
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(_BESIDE_AVERAGE)}
        if all(key.startswith(_AVERAGE) for key in tensors):
            tensors = below(tensors, _AVERAGE)
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        bare = unwrapped_key(key)
        if bare in found:
            raise ValueError(f"{path} has {bare} with and without the names that wrappers add, as {key}: keep one")
        found[bare] = tensor
    for counter in _COUNTERS:
        found.pop(counter, None)
    return found


def unwrapped_key(key: str) -> str:
    """A key without the names that DDP, torch.compile and others of their kind put before or into it."""
    return _WRAPPING.sub("", key)


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose key begins with `prefix`, without it."""
    return {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
