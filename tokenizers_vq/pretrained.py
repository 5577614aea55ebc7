"""What tokenizers and priors share: saved to a folder with a model card, loaded from one, pushed to the Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin
from typing_extensions import Self

from tokenizers_vq import folders


class Pretrained(PyTorchModelHubMixin):
    """A module with a `config` that is saved and loaded strictly, where the mixin loads loosely.

    A class has `_find` and `_load`, of names and of folders, and `generate_model_card`.
    """

    config: Any
    card: str | None = None
    """text of the model card that it was loaded with, which it keeps when saved or pushed unchanged"""

    def _savable_config(self) -> Any:
        return self.config

    def folded(self) -> Self:
        """The model as it is saved: itself, unless overridden."""
        return self

    @classmethod
    def _find(cls, name: str | Path, **options: Any) -> Path:
        raise NotImplementedError

    @classmethod
    def _load(cls, folder: Path) -> Self:
        raise NotImplementedError

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        card: dict[str, Any] | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        config: Any = None,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_options: Any,
    ) -> Any:
        """Write `config.json`, `model.safetensors` and the card `README.md` into a folder, each replaced atomically.

        Weights are written in the dtype that they have: `model.half().save_pretrained(folder)` takes half the space,
        and is loaded as float32. Rounding moves some codes, so a tokenizer saved in half precision has a fingerprint
        of its own: encode with the saved one what shall be decoded by it.

        `card`: `data`, `licence`, `command`, `figures` (name -> value) and more (`model_card`) for the model card;
        without it a card that is there, or that the model was loaded with, stays. `push_to_hub` uploads too, to
        `repo_id` or the folder's name, with the options of `push_to_hub`. `config` and `model_card_kwargs` are what
        the mixin calls its own config, which is always written, and `card`.
        """
        if push_options and not push_to_hub:
            raise ValueError(f"save_pretrained takes no {min(push_options)}: it writes safetensors of the whole model")
        card = model_card_kwargs if card is None else card
        model = self.folded()
        saved = model._savable_config().to_dict()
        text = self.card if card is None and self.card else str(model.generate_model_card(**(card or {})))
        state: Mapping[str, torch.Tensor] = model.state_dict()  # type: ignore[attr-defined]  # of the module beside it
        folders.save(Path(save_directory), saved, state, card=text, keep_card=card is None)
        if push_to_hub:
            return self.push_to_hub(repo_id or Path(save_directory).name, model_card_kwargs=card, **push_options)
        return None

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the mixin's own loads loosely and takes any keyword in silence
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        token: str | bool | None = None,
        local_files_only: bool = False,
        map_location: str | torch.device = "cpu",
    ) -> Self:
        """As `load`, with the options of a download: float32, strict, in eval mode, on `map_location`."""
        folder = cls._find(
            pretrained_model_name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            token=token,
            local_files_only=local_files_only,
        )
        return cls._load(folder).to(map_location)  # type: ignore[attr-defined]  # nn.Module's


def model_card(
    summary: str,
    usage: str,
    tags: Sequence[str],
    *,
    title: str,
    data: str = "not recorded",
    data_licence: str | None = None,
    licence: str | None = None,
    terms: str | None = None,
    command: str | None = None,
    seed: int | None = None,
    figures: Mapping[str, Any] | None = None,
    notes: str | None = None,
    recipe: str | None = None,
) -> ModelCard:
    """A card: what the model is and how it is used, data, licences, command, figures, recipe (as YAML).

    `licence`: an identifier that the Hub knows (`apache-2.0`), or a name of its own; `terms` says it in a sentence.
    What is not known is said so.
    """
    header = ModelCardData(library_name="tokenizers-vq", tags=list(tags), **_licence(licence))
    terms = terms or licence or "not recorded; ask whoever trained them before you use them"
    lines = [f"---\n{header.to_yaml()}\n---", f"# {title}", summary, f"```python\n{usage}\n```"]
    lines.append(f"**Training data:** {data}")
    if data_licence:
        lines.append(f"**Licence of the data:** {data_licence}")
    lines.append(f"**Licence of the weights:** {terms}")
    if command:
        lines.append(f"**Trained by:** `{command}`" + ("" if seed is None else f", seed {seed}"))
    if figures:
        shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in figures.items()}
        rows = "\n".join(f"| {name} | {value} |" for name, value in shown.items())
        lines.append(f"| figure | value |\n| --- | --- |\n{rows}")
    else:
        lines.append("**Figures:** none measured yet; the command's `evaluate` measures them.")
    if notes:
        lines.append(notes)
    if recipe:
        lines.append(f"## Recipe\n\n```yaml\n{recipe.strip()}\n```")
    return ModelCard("\n\n".join(lines) + "\n")


def _licence(licence: str | None) -> dict[str, Any]:
    if licence is None:
        return {"license": "unknown"}
    if re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", licence):
        return {"license": licence}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9]+", "-", licence.lower()).strip("-")}
