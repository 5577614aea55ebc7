"""A model's folder: config.json, model.safetensors and a card, found by name, read strictly, replaced atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from tokenizers_vq.config import ConfigError, nearest, read_json
from tokenizers_vq.writing import write_atomically

_LONGEST = 1000  # letters of a name: longer ones are no path
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


def to_json(data: Any) -> str:
    """Canonical JSON: sorted keys, no spaces to differ in."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def save(
    folder: Path,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    card: str | None = None,
    keep_card: bool = True,
) -> None:
    """Write a model's folder, tensors in the dtype that they have. An existing card stays when `keep_card`."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    write_atomically(folder / WEIGHTS, serialise(tensors, metadata={"format": "pt"}))
    write_atomically(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    if card is not None and not (keep_card and (folder / CARD).exists()):
        write_atomically(folder / CARD, card)


_OWN_FIELD = {"tokenizer": "decoder", "prior": "network"}  # a tokenizer of several grids has `quantizers`
_LOADED_BY = {
    "tokenizer": "give it to tokenizers_vq.load or `tvq`",
    "prior": "give it to prior.load or `tvq-prior`",
}


def read_config(folder: Path, what: str = "tokenizer") -> dict[str, Any]:
    """The parsed `config.json` of a `tokenizer` or `prior`.

    Raises one-line errors where it is missing, no JSON object, or of the other of the two.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG}: it is not a saved model")
    try:
        data = read_json(path)
    except ConfigError as error:
        raise ConfigError((), f"{error}: save or copy the model again") from None
    for other, field in _OWN_FIELD.items():
        if other != what and field in data and _OWN_FIELD[what] not in data:
            raise ValueError(f"{folder} holds a {other}, expected a {what}: {_LOADED_BY[other]}")
    return data


def read_card(folder: Path) -> str | None:
    """The text of the folder's model card, where there is one."""
    path = folder / CARD
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def load_weights(module: nn.Module, folder: Path) -> None:
    """Fill `module` (on the meta device) from the folder's safetensors: strict, floating tensors as float32.

    Raises `FileNotFoundError` or `ValueError`, one line naming what is missing, surplus, misshapen or truncated.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {WEIGHTS}: it is not a saved model")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is truncated or not a safetensors file ({error}): copy or "
            "save it again"
        ) from None
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problems = [f"surplus {name}" for name in found.keys() - wanted.keys()]
    problems += [
        f"{name} is {found[name]}, the config needs {wanted[name]}"
        for name in wanted.keys() & found.keys()
        if wanted[name] != found[name]
    ]
    fitting = {name: tensor for name, tensor in tensors.items() if wanted.get(name) == found[name]}
    upcast = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in fitting.items()}
    missing = module.load_state_dict(upcast, strict=False, assign=True).missing_keys
    problems += [f"missing {name}" for name in set(missing) - found.keys()]
    if problems:
        shown = "; ".join(sorted(problems)[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ValueError(f"{path} does not fit its {CONFIG}: {shown}")
    for name, weight in module.named_parameters():  # of the buffers, measures begin as NaN
        if weight.is_floating_point() and weight.numel() and not torch.stack(weight.aminmax()).isfinite().all():
            raise ValueError(
                f"{path} holds NaN or infinite weights ({name}): the file is damaged, or training diverged"
            )


def local(name: str | Path) -> Path | None:
    """The folder with the config of a saved model or of a run, which keeps its model in `model/`; None for no such."""
    path = Path(name)
    try:
        return next((folder for folder in (path, path / "model") if (folder / CONFIG).is_file()), None)
    except OSError:  # a name that is too long for a file is none
        return None


def lasting_name(name: str | Path) -> str:
    """A model's name as files keep it: of a local folder the absolute path, else (shipped, Hub) the name itself."""
    return str(Path(name).resolve()) if local(name) is not None else str(name)


def shipped(weights: Path) -> list[str]:
    """Sorted names of the models in the folder `weights` of a package."""
    return sorted(path.parent.name for path in weights.glob(f"*/{CONFIG}"))


def find(name: str | Path, weights: Path, what: str, **options: Any) -> Path:
    """The folder of a model: a run or saved folder, a name in `weights`, else a Hub repository.

    `options` are `download`'s. Raises `FileNotFoundError` with near names.
    """
    if not isinstance(name, (str, Path)) or not str(name):
        raise ValueError(f"a {what} is named by a text or a path, got {name!r}")
    folder, text = local(name), str(name)
    if folder is not None:
        return folder
    if len(text) > _LONGEST:
        raise FileNotFoundError(f"no {what} is called '{text[:40]}...': a name of {len(text)} letters")
    if text in shipped(weights):
        return weights / text
    if Path(name).is_file():
        command = "tvq-prior" if what == "prior" else "tvq"
        raise ValueError(f"{name} is a file, expected a {what}'s folder; a published checkpoint: `{command} convert`")
    if Path(name).is_dir():
        raise FileNotFoundError(f"{name} holds no {CONFIG}, neither itself nor in model/: it is not a saved {what}")
    mistyped = Path(name).parent.is_dir()  # of owner/name too: a folder of that owner lies here
    if text.count("/") == 1 and not text.startswith((".", "/", "~")) and not mistyped:
        return download(text, **options)
    raise FileNotFoundError(
        f"no folder, shipped {what} or Hub repository (owner/name) called '{text}'{nearest(text, shipped(weights))}"
    )


def download(repository: str, **options: Any) -> Path:
    """The local folder of a Hub repository. Raises `FileNotFoundError` saying what was tried."""
    try:
        return Path(snapshot_download(repository, allow_patterns=[CONFIG, WEIGHTS, CARD], **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"no folder '{repository}', and the Hub repository '{repository}' cannot be reached ({reason[:120]}): "
            "check the name and the network"
        ) from None
