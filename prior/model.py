"""`Prior`: the distribution of an image's codes, to train, to measure and to sample from; its config, its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from torch import Tensor, nn

from prior.conditions import ConditionConfig, NoneConfig
from prior.networks import NetworkConfig
from prior.sampling import Sampler, draw, guide, uniforms
from prior.sequences import LayoutConfig, Sequence
from tokenizers_vq import folders
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.config import Config, nearest, parse, read_yaml
from tokenizers_vq.pretrained import Pretrained, model_card

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights"


class PriorConfig(Config):
    """A prior, and the tokenizer whose codes it models."""

    kind: Literal["autoregressive"] = "autoregressive"
    network: NetworkConfig
    """the transformer"""
    condition: ConditionConfig = NoneConfig()
    """what it is told beforehand"""
    layout: LayoutConfig
    """layout of the codes"""
    tokenizer: str | None = None
    """folder or name of the tokenizer: `tokenizers_vq.load` takes it"""
    fingerprint: str | None = None
    """fingerprint of the tokenizer"""
    label_names: tuple[str, ...] | None = None
    """names of the classes"""

    def find_class(self, name: str) -> int:
        """The number of the class called `name`, in any letter case where that is unique, or written as a number.

        Raises `ValueError` for a prior without classes, a number out of range, or an unknown name, with the nearest.
        """
        if self.condition.kind != "class":
            raise ValueError(f"no class '{name}': this prior was trained without classes; leave the class out")
        names = self.label_names or ()
        alike = [index for index, known in enumerate(names) if known.casefold() == name.casefold()]
        if name in names or len(alike) == 1:
            return names.index(name) if name in names else alike[0]
        if name.lstrip("-").isdigit():
            if name.isdigit() and int(name) < self.condition.num_classes:
                return int(name)
            raise ValueError(f"no class {name}; they are 0 to {self.condition.num_classes - 1}")
        if not names:
            raise ValueError(f"no class called '{name}'; this prior knows numbers alone")
        hint = nearest(name, names)
        if "did you mean" not in hint and len(names) > 20:
            hint = f"; there are {len(names)}, the first is '{names[0]}'"
        raise ValueError(f"no class called '{name}'{hint}")


class Prior(nn.Module, Pretrained, library_name="tokenizers-vq", tags=["image-prior"]):
    """Autoregressive prior over the flat row of codes."""

    config: PriorConfig

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        self.sequence = Sequence(config.layout.build())
        self.condition = config.condition.build(config.network.dim)
        self.network = config.network.build(self.sequence)

    @property
    def layout(self) -> CodeLayout:
        """Layout of the codes that this prior models."""
        return self.sequence.layout

    @property
    def exact(self) -> bool:
        """Whether `log_likelihood` is exact (otherwise a bound)."""
        return self.network.exact

    def forward(self, tokens: Tensor, condition: Any = None) -> Tensor:
        """int64 `(B, N)` -> logits `(B, N, K)`: place i predicts code i from those before it; impossible codes -inf.

        `condition`: labels int64 `(B,)`, one label, or None (no condition). Raises `ValueError` for tokens of another
        length or range, or a label out of range.
        """
        self.sequence.check(tokens)
        return self.sequence.mask(self.network(tokens[:, :-1], self.condition(condition, tokens.shape[0])))

    def log_likelihood(self, tokens: Tensor, condition: Any = None) -> Tensor:
        """int64 `(B, N)` -> `(B,)` nats, float32; as `forward`, in eval mode free of dropout."""
        logits = self(tokens, condition).float()
        return -F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape).sum(dim=1)

    def sample(
        self, n: int, condition: Any = None, sampler: Sampler | None = None, known: Tensor | None = None, first: int = 0
    ) -> Tensor:
        """Draw codes int64 `(n, N)`, sample i from (seed, `first` + i). `condition`: as `forward`, or a class's name.

        `known`: int64 `(N,)` or `(n, N)`, codes to keep, -1 where unknown; a code is drawn given those before it alone.
        Raises `ValueError` for a guided prior without condition, or codes and labels as `forward` does.
        """
        sampler = sampler or Sampler()
        condition = self.config.find_class(condition) if isinstance(condition, str) else condition
        length, device = self.sequence.length, self.sequence.positions.device
        if n < 1:
            raise ValueError(f"cannot draw {n} samples; ask for 1 or more")
        if known is None:
            known = torch.full((n, length), -1, device=device)
        else:
            known = known.to(device).expand(n, -1) if known.ndim == 1 else known.to(device)
            if known.shape[0] != n:
                raise ValueError(f"known holds {known.shape[0]} rows, {n} samples are asked for")
            self.sequence.check(known, unknown=True)
        guided = sampler.guidance != 1
        if guided and (condition is None or not self.condition.guidable):
            raise ValueError(f"guidance {sampler.guidance} needs a class; pass one, or guidance 1")
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                codes = self._sample(known, condition, sampler, guided, first)
        finally:
            self.train(was_training)
        return codes.clone()  # outside inference mode, so that gradients may be taken through its embedding

    def _sample(self, known: Tensor, condition: Any, sampler: Sampler, guided: bool, first: int) -> Tensor:
        n, length = known.shape
        prefix = self.condition(condition, n)
        if guided:
            prefix = torch.cat((prefix, self.condition.null(n)))
        rows = prefix.shape[0]
        given = known >= 0
        start = int(given.all(dim=0).long().cumprod(0).sum())
        codes = known.clone()
        if start == length:
            return codes
        cache = self.network.cache(rows, prefix.shape[1])
        if start:
            logits = self.network(codes[:, :start].repeat(rows // n, 1), prefix, cache)[:, -1]
        decoder = self.network.decoder(cache, prefix.shape[1])
        if not start:
            for vector in prefix.unbind(dim=1):
                logits = decoder.feed(vector)
        noise = uniforms(n, length, sampler.seed, first).to(known.device)
        partly = given.any(dim=0).tolist()
        for place in range(start, length):
            if place > start:
                logits = decoder.step(codes[:, place - 1].repeat(rows // n))
            scores = self.sequence.mask(logits[:, None], place)[:, 0]
            drawn = draw(guide(scores, sampler.guidance) if guided else scores, sampler, noise[:, place])
            codes[:, place] = torch.where(given[:, place], codes[:, place], drawn) if partly[place] else drawn
        return codes

    def generate_model_card(self, **card: Any) -> ModelCard:
        """The model card; `card` as of `tokenizers_vq.pretrained.model_card`, and `name`, by which it is loaded."""
        config, name, names = self.config, card.pop("name", "PATH"), self.config.label_names or ()
        size = sum(parameter.numel() for parameter in self.parameters())
        # An absolute path is of use to nobody else.
        tokenizer = None if Path(config.tokenizer or "/").is_absolute() else config.tokenizer
        summary = (
            f"{config.network.kind} transformer, {size:,} parameters, the distribution of {self.layout.length} codes "
            f"of {' / '.join(map(str, self.layout.sizes))}, of the tokenizer {tokenizer or ''} and no other, "
            f"fingerprint `{config.fingerprint}`. "
        )
        if config.condition.kind == "class":
            listed = f": {', '.join(f'{i} {known}' for i, known in enumerate(names))}." if names else "."
            summary += f"It is told the class, one of {config.condition.num_classes}{listed}"
        else:
            summary += "It knows no classes."
        condition = f', "{names[0]}"' if names else ", 0" if config.condition.kind == "class" else ""
        usage = (
            f'import prior\nimport tokenizers_vq as tvq\n\nmodel = prior.load("{name}")\n'
            f'tok = tvq.load("{tokenizer or "PATH OF THE TOKENIZER"}")\n'
            f"codes = model.layout.unflatten(model.sample(1{condition}))\n"
            "image = tvq.images.to_pil(tok.decode(codes)[0])"
        )
        return model_card(summary, usage, ["image-prior"], **{"title": "Prior over image codes", **card})

    @classmethod
    def _find(cls, name: str | Path, **options: Any) -> Path:
        return find_model(name, **options)

    @classmethod
    def _load(cls, folder: Path) -> Prior:
        return load_folder(folder)


def list_models(kind: str = "preset") -> list[str]:
    """Sorted names: of `preset`s that `create` takes, or `shipped` priors that `load` takes.

    Raises `ValueError` for another kind.
    """
    if kind == "preset":
        return sorted(path.stem for path in (HERE / "presets").glob("*.yaml"))
    if kind == "shipped":
        return folders.shipped(WEIGHTS)
    raise ValueError(f"no kind of model '{kind}'{nearest(kind, ('preset', 'shipped'))}")


def create(
    preset: str, layout: CodeLayout, condition: ConditionConfig | dict[str, Any] | None = None, **fields: Any
) -> Prior:
    """An untrained prior of a preset's size for a layout. `fields`: tokenizer, fingerprint, label_names.

    Raises `ValueError` for an unknown preset, with the nearest name.
    """
    if preset not in list_models():
        raise ValueError(f"no preset '{preset}' of a prior{nearest(preset, list_models())}")
    data = read_yaml(HERE / "presets" / f"{preset}.yaml")
    if condition is not None:
        data["condition"] = condition
    return Prior(parse(PriorConfig, {**data, "layout": LayoutConfig.of(layout), **fields}, f"preset {preset}"))


def load(name: Path | str, *, device: str | torch.device | None = None) -> Prior:
    """A prior from a folder (of a run: its `model/`), the name of a shipped one, or a Hub repository `owner/name`.

    float32, in eval mode. Raises `FileNotFoundError` where nothing is there, `ValueError` where a file is damaged, its
    tensors do not fit the config, or a tokenizer is there.
    """
    prior = load_folder(find_model(name))
    return prior if device is None else prior.to(device)


def load_folder(folder: Path) -> Prior:
    """The prior of a saved folder, float32, in eval mode. Raises one line for anything missing or surplus."""
    prior = Prior(parse(PriorConfig, folders.read_config(folder, "prior"), str(folder / folders.CONFIG)))
    folders.load_weights(prior, folder)
    prior.card = folders.read_card(folder)
    return prior.eval()


def find_model(name: str | Path, **options: Any) -> Path:
    """The folder that `load(name)` reads, downloaded from the Hub where it must be, with the options of a download."""
    from tokenizers_vq.models import list_models as tokenizers

    try:
        return folders.find(name, WEIGHTS, "prior", **options)
    except FileNotFoundError:
        if str(name) in tokenizers("shipped"):
            problem = "is a tokenizer, where a prior is wanted: give it to tokenizers_vq.load or `tvq`"
        elif str(name) in list_models():
            problem = "is a preset without trained weights: train it first, or use prior.create"
        else:
            raise
    raise ValueError(f"'{name}' {problem}")
