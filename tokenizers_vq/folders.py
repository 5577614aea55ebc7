"""A model's folder: config.json, model.safetensors and a card, read strictly and replaced atomically."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.config import ConfigError

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


def to_json(data: Any) -> str:
    """Canonical JSON: sorted keys, no spaces to differ in."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file beside its place, then move it there: a reader sees the old file or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def save(
    folder: Path,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    card: str | None = None,
    keep_card: bool = True,
) -> None:
    """Write a model's folder. An existing card stays when `keep_card`."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    write_atomically(folder / WEIGHTS, serialise(tensors, metadata={"format": "pt"}))
    write_atomically(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    if card is not None and not (keep_card and (folder / CARD).exists()):
        write_atomically(folder / CARD, card)


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed `config.json`. Raises one-line errors where it is missing or no JSON object."""
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG}: it is no saved model")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError((), f"{path} is not valid JSON ({error}): save or copy the model again") from None
    if not isinstance(data, dict):
        raise ConfigError((), f"{path} holds no JSON object: save or copy the model again")
    return data


def read_card(folder: Path) -> str | None:
    """The text of the folder's model card, where there is one."""
    path = folder / CARD
    return path.read_text(encoding="utf-8") if path.is_file() else None


def load_weights(module: nn.Module, folder: Path) -> None:
    """Fill `module` (on the meta device) from the folder's safetensors: strict, floating tensors as float32.

    Raises `FileNotFoundError` or `ValueError`, one line naming what is missing, surplus, misshapen or truncated.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {WEIGHTS}: it is no saved model")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is truncated or no safetensors file ({error}): copy or save it again"
        ) from None
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problems = [f"missing {name}" for name in wanted.keys() - found.keys()]
    problems += [f"surplus {name}" for name in found.keys() - wanted.keys()]
    problems += [
        f"{name} is {found[name]}, the config needs {wanted[name]}"
        for name in wanted.keys() & found.keys()
        if wanted[name] != found[name]
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ValueError(f"{path} does not fit its {CONFIG}: {shown}")
    upcast = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    module.load_state_dict(upcast, strict=True, assign=True)


def download(repository: str, **options: Any) -> Path:
    """The local folder of a Hub repository. Raises `FileNotFoundError` saying what was tried."""
    try:
        return Path(snapshot_download(repository, allow_patterns=[CONFIG, WEIGHTS, CARD], **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"no folder '{repository}', and the Hub repository '{repository}' cannot be had ({reason[:120]}): "
            "check the name and the network"
        ) from None


def model_card(
    config: Mapping[str, Any],
    layout: CodeLayout,
    module: nn.Module,
    *,
    data: str = "not recorded",
    licence: str | None = None,
    command: str | None = None,
    figures: Mapping[str, Any] | None = None,
    title: str = "Image tokenizer",
) -> ModelCard:
    """A card with architecture, data, licence, command and figures; what is not known is said so."""
    header = ModelCardData(license=licence or "unknown", library_name="tokenizers-vq", tags=["image-tokenizer"])
    parameters = sum(parameter.numel() for parameter in module.parameters())
    grids = " + ".join("x".join(map(str, grid)) for grid in layout.grids)
    lines = [
        f"---\n{header.to_yaml()}\n---",
        f"# {title}",
        f"{config['encoder']['kind']} encoder, {config['quantizer']['kind']} quantizer, {config['decoder']['kind']} "
        f"decoder; {parameters:,} parameters. An image of {config['image_size']} px becomes {layout.length} codes "
        f"({grids}) of {' / '.join(map(str, layout.sizes))}: {layout.bits:.0f} bits.",
        "```python\nimport tokenizers_vq as tvq\n\ntok = tvq.load(PATH)\n"
        "codes = tok.encode(tvq.images.read('cat.jpg'))\nimage = tvq.images.to_pil(tok.decode(codes)[0])\n```",
        f"**Training data:** {data}",
        f"**Licence of the weights:** {licence or 'not recorded; ask whoever trained them before you use them'}",
    ]
    if command:
        lines.append(f"**Trained by:** `{command}`")
    if figures:
        shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in figures.items()}
        rows = "\n".join(f"| {name} | {value} |" for name, value in shown.items())
        lines.append(f"| figure | value |\n| --- | --- |\n{rows}")
    else:
        lines.append("**Figures:** none measured yet; `tvq evaluate` measures them.")
    return ModelCard("\n\n".join(lines) + "\n")
