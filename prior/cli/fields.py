"""`tvq-prior fields`."""

from __future__ import annotations

from typing import Annotated, get_type_hints

import typer

from tokenizers_vq.cli.fields import print_fields, print_section

Path_ = Annotated[
    str,
    typer.Argument(
        metavar="[PATH]",
        help="path in a recipe, such as model.network; sampler: how codes are drawn; unset: the whole recipe",
    ),
]


def fields(path: Path_ = "") -> None:
    """Show the fields of a prior's recipe, of a part of it, or of the samplers: allowed values, default, meaning."""
    from prior.recipe import PriorRecipe

    if path.split(".")[0] == "sampler":
        _print_samplers(path.split(".")[1:])
    else:
        print_fields(PriorRecipe, path)


def _print_samplers(below: list[str]) -> None:
    """What all kinds of networks have, then what further ones do; of one field where it is named.

    Raises `ValueError` for a field that none has.
    """
    from prior.networks import NetworkConfig
    from prior.sampling import Sampler
    from tokenizers_vq.config import ConfigError, nearest
    from tokenizers_vq.fields import configs_of, section

    kinds: dict[type[Sampler], list[str]] = {}
    for config in configs_of(NetworkConfig):
        network = get_type_hints(config.build)["return"]  # type: ignore[attr-defined]
        kinds.setdefault(network.Sampler, []).append(config.model_fields["kind"].default)
    found = {"sampler": section(Sampler)}
    for sampler, names in kinds.items():
        own = section(sampler)
        new = [field for field in own.fields if field not in found["sampler"].fields]
        found[f"sampler of {', '.join(names)}"] = own._replace(fields=new)
    known = {field.name for one in found.values() for field in one.fields}
    if below and (len(below) > 1 or below[0] not in known):
        raise ConfigError((".".join(["sampler", *below]),), f"no such field{nearest(below[0], known)}")
    for heading, one in found.items():
        shown = [field for field in one.fields if not below or field.name == below[0]]
        if shown:
            print_section(heading, one._replace(fields=shown))
