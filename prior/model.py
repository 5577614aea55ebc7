"""`Prior`: the distribution of an image's codes, to train, to measure and to sample from; its config, its folder."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from huggingface_hub import ModelCard
from pydantic import model_validator
from torch import Tensor, nn
from typing_extensions import Self

from prior.conditions import ClassConfig, ConditionConfig, Context, GridsConfig, NoneConfig, SeveralConfig
from prior.networks import NetworkConfig
from prior.sampling import Sampler, uniforms
from prior.sequences import LayoutConfig, Sequence
from tokenizers_vq import folders
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.config import Config, ConfigError, parse
from tokenizers_vq.pretrained import Pretrained, model_card
from tokenizers_vq.quantizers import QuantizerConfig

WEIGHTS = Path(__file__).parent / "weights"


class PriorConfig(Config):
    """A prior, and the tokenizer whose codes it models."""

    kind: Literal["prior"] = "prior"
    network: NetworkConfig
    """what models the codes"""
    condition: ConditionConfig = NoneConfig()
    """what it is told beforehand"""
    layout: LayoutConfig
    """layout of the codes"""
    grids: tuple[int, ...] | None = None
    """numbers of the tokenizer's grids that are modelled; null: all"""
    whole: LayoutConfig | None = None
    """layout of all codes of the tokenizer, where some grids alone are modelled"""
    tokenizer: str | None = None
    """folder or name of the tokenizer: `tokenizers_vq.load` takes it"""
    fingerprint: str | None = None
    """fingerprint of the tokenizer"""
    book: QuantizerConfig | None = None
    """the tokenizer's quantizer, for a network that is fed the vectors of its codes"""

    @model_validator(mode="before")
    @classmethod
    def _of_older_files(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        # Until there were others, every prior called itself autoregressive,
        if data.get("kind") == "autoregressive":
            data = {**data, "kind": "prior"}
        # and until a prior could be told several classes, their names stood here.
        if "label_names" in data:
            data = dict(data)
            names, told = data.pop("label_names"), data.get("condition")
            if isinstance(told, ClassConfig):
                told = told.to_dict()
            if names is not None and isinstance(told, Mapping) and told.get("kind") == "class":
                data["condition"] = {**told, "label_names": names}
        return data

    @property
    def given(self) -> tuple[int, ...]:
        """Numbers of the tokenizer's grids whose codes are told."""
        parts = self.condition.conditions if isinstance(self.condition, SeveralConfig) else (self.condition,)
        return next((part.grids for part in parts if isinstance(part, GridsConfig)), ())

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Names of the classes, where the prior is told one and they have names."""
        return self.condition.label_names if isinstance(self.condition, ClassConfig) else None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.network.fed_vectors != (self.book is not None):
            needs = "needs the tokenizer's quantizer: give its config" if self.book is None else "takes no quantizer"
            raise ConfigError(("book",), f"a {self.network.kind} network {needs}")
        if (self.grids is None) != (self.whole is None):
            raise ConfigError(("grids",), "which grids are modelled, and the layout of all (whole), go together")
        if self.grids is not None and self.whole is not None:
            if self.whole.build().part(self.grids) != self.layout.build():
                raise ConfigError(("grids",), f"{list(self.grids)} of the whole are not the codes of the layout")
            if both := sorted(set(self.grids) & set(self.given)):
                raise ConfigError(("grids",), f"{both} are modelled and told; take them out of one")
        return self


class Draw(NamedTuple):
    """Samples that are asked for together."""

    n: int
    condition: Any
    seed: int
    first: int = 0
    known: Any = None


class Prior(nn.Module, Pretrained, library_name="tokenizers-vq", tags=["image-prior"]):
    """The distribution of an image's codes, given what it is told. `tokens`: int64 `(B, N)`, as `layout.flatten` gives.

    `condition` is what the prior is told for B rows: a class's number or name, a text, one for all or a list of B, or
    None; what is told several things takes them by name, `{"text": "a cat", "style": "noto"}`, or a list of these.
    """

    config: PriorConfig

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        self.sequence = Sequence(config.layout.build())
        self.condition = config.condition.build(config.network.told_dim)
        book = None if config.book is None else config.book.build().requires_grad_(False)
        self.network = config.network.build(self.sequence, book)

    @property
    def layout(self) -> CodeLayout:
        """Layout of the codes that this prior models."""
        return self.sequence.layout

    @property
    def exact(self) -> bool:
        """Whether `log_likelihood` is exact (otherwise a bound)."""
        return self.network.exact

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.sequence.positions.device

    def context(self, condition: Any, n: int) -> Context:
        """What the network is told for `n` rows. Raises `ValueError` for a condition that cannot be told."""
        return self.condition(*self.condition.resolve(self.condition.own(condition), n))

    def forward(self, tokens: Tensor, condition: Any = None) -> Tensor:
        """The training loss of codes, a scalar; what is wrapped for several processes.

        Raises `ValueError` for tokens of another length or range, or a condition that cannot be told.
        """
        tokens = self.sequence.checked(tokens)
        return self.network.loss(tokens, self.context(condition, tokens.shape[0]))

    def logits(self, tokens: Tensor, condition: Any = None) -> Tensor:
        """Logits `(B, N, K)` of every place, impossible codes -inf; raises as `forward`.

        Of autoregressive priors place i is predicted from the codes before it, of masked ones (`network.masked`) every
        place from the codes that are not -1.
        """
        self.sequence.check(tokens, unknown=self.network.masked)
        return self.network.logits(tokens, self.context(condition, tokens.shape[0]))

    def log_likelihood(self, tokens: Tensor, condition: Any = None) -> Tensor:
        """Nats of codes, float32 `(B,)`, a lower bound unless `exact`; no dropout in eval mode. Raises as `forward`."""
        self.sequence.check(tokens)
        return self.network.log_likelihood(tokens, self.context(condition, tokens.shape[0]))

    def sample(
        self,
        n: int = 1,
        condition: Any = None,
        sampler: Sampler | Mapping[str, Any] | None = None,
        known: Any = None,
        first: int = 0,
        **settings: Any,
    ) -> Tensor:
        """Draw codes int64 `(n, N)`, sample i from (seed, `first` + i). `settings`: fields of the sampler to change.

        `known`: codes to keep, -1 where unknown: `(N,)` for all samples, `(n, N)`, or as the tokenizer gives them. An
        autoregressive prior draws a code given those before it alone.

            prior.sample(2, ["goldfish", "alp"], guidance=3, top_p=0.95)

        Raises `ValueError` for guidance that is not possible, another kind's sampler, and as `forward` does.
        """
        n, chosen = checked_count(n), self.sampler(sampler, settings)
        return self.sample_together([Draw(n, condition, chosen.seed, first, known)], chosen)[0]

    def sample_together(self, draws: Collection[Draw], sampler: Sampler) -> list[Tensor]:
        """Draws of one sampler, but for its seed, in one batch: codes int64 `(n, N)` of each, as `sample` gives them.

        Raises as `sample` does.
        """
        for each in draws:
            told = self.condition.own(each.condition)
            self.condition.check_guidance(sampler.guidance, told)
            self.condition.remark(told)
        given = torch.cat([known_tokens(each.known, each.n, self.sequence) for each in draws])

        def noise(draw: int, count: int) -> Tensor:
            rows = [uniforms(each.n, count, each.seed, each.first, draw) for each in draws]
            return torch.cat(rows).to(given.device, non_blocking=True)

        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                told = [self.condition.resolve(self.condition.own(each.condition), each.n) for each in draws]
                context = self.condition(*(torch.cat(rows) for rows in zip(*told, strict=True)))
                codes = self.network.generate(given, context, sampler, noise)
        finally:
            self.train(was_training)
        # Cloned outside inference mode, so that gradients may be taken through its embedding.
        return [rows.clone() for rows in codes.split([each.n for each in draws])]

    def sampler(self, sampler: Any, settings: Mapping[str, Any]) -> Sampler:
        """A sampler of this kind of network, with some settings changed. Raises `ValueError` for another kind's."""
        wanted = self.network.Sampler
        if isinstance(sampler, Sampler):
            if not issubclass(wanted, type(sampler)):
                raise ValueError(
                    f"a {self.config.network.kind} prior is drawn with {wanted.__name__}, got {type(sampler).__name__}"
                )
            # What nobody set is as this kind of network has it.
            return wanted(**{**{name: getattr(sampler, name) for name in sampler.model_fields_set}, **settings})
        if sampler is not None and not isinstance(sampler, Mapping):
            raise ValueError(
                f"sampler must be a prior.Sampler, got {sampler!r}: give its fields by name, such as guidance=3"
            )
        return wanted(**{**(sampler or {}), **settings})

    def generate_model_card(self, **card: Any) -> ModelCard:
        """The model card; `card` as of `tokenizers_vq.pretrained.model_card`, and `name`, by which it is loaded."""
        config, name = self.config, card.pop("name", "PATH")
        size = sum(parameter.numel() for parameter in self.parameters())
        # An absolute path is of use to nobody else.
        tokenizer = None if Path(config.tokenizer or "/").is_absolute() else config.tokenizer
        told, example = self.condition.card()
        summary = (
            f"{config.network.kind} network, {size:,} parameters, the distribution of {self.layout.length} codes "
            f"of {' / '.join(map(str, self.layout.sizes))}, of the tokenizer {tokenizer or ''} and no other, "
            f"fingerprint `{config.fingerprint}`. {told}"
        )
        condition = f", {example}" if example else ""
        usage = (
            f'import prior\nimport tokenizers_vq as tvq\n\nmodel = prior.load("{name}")\n'
            f'tok = tvq.load("{tokenizer or "PATH OF THE TOKENIZER"}")\n'
            f"codes = model.layout.unflatten(model.sample(1{condition}))\n"
            "image = tvq.images.to_pil(tok.decode(codes)[0])"
        )
        if config.grids is not None:
            usage = (
                "import prior\n\n# with the priors of the other grids, coarse first\n"
                f'chain = prior.Chain([prior.load("COARSER"), prior.load("{name}")])\ncodes = chain.sample(1)'
            )
        return model_card(summary, usage, ["image-prior"], **{"title": "Prior over image codes", **card})

    @classmethod
    def _find(cls, name: str | Path, **options: Any) -> Path:
        return folders.find(name, WEIGHTS, "prior", **options)

    @classmethod
    def _load(cls, folder: Path) -> Prior:
        return load_folder(folder)


def checked_count(n: Any) -> int:
    """How many samples are asked for. Raises `ValueError` for what is no number of them."""
    if not hasattr(n, "__index__") or (count := operator.index(n)) < 1:
        raise ValueError(f"cannot draw {n!r} samples; ask for 1 or more, such as sample(2, [0, 3])")
    return count


def known_tokens(known: Any, n: int, sequence: Sequence) -> Tensor:
    """Known codes as int64 `(n, N)`. Raises `ValueError` for other shapes and codes."""
    if known is None:
        return torch.full((n, sequence.length), -1, device=sequence.positions.device)
    try:
        if isinstance(known, (tuple, list)) and all(getattr(part, "ndim", 0) > 1 for part in known):
            known = sequence.layout.flatten(tuple(torch.as_tensor(part) for part in known))
        given = torch.as_tensor(known).to(sequence.positions.device)
        given = sequence.layout.flatten(given) if given.ndim > 2 else given
    except (TypeError, RuntimeError):
        raise ValueError(f"known must be codes, -1 where unknown; got {type(known).__name__}") from None
    except ValueError as error:
        raise ValueError(f"known: {error}") from None
    given = given[None] if given.ndim == 1 else given
    if given.shape[0] not in (1, n):
        raise ValueError(f"known holds {given.shape[0]} rows, {n} samples are asked for")
    if not given.is_floating_point() and given.dtype != torch.bool:
        given = given.long()
    try:
        sequence.check(given, unknown=True)
    except ValueError as error:
        raise ValueError(f"known: {error}") from None
    return given.expand(n, -1)


def load_folder(folder: Path) -> Prior:
    """The prior of a saved folder, float32, in eval mode. Raises one line for anything missing or surplus."""
    prior = Prior(parse(PriorConfig, folders.read_config(folder, "prior"), str(folder / folders.CONFIG)))
    folders.load_weights(prior, folder)
    prior.card = folders.read_card(folder)
    return prior.eval()
