"""`tvq fields`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tokenizers_vq.config import Config
    from tokenizers_vq.fields import Section

Path_ = Annotated[
    str, typer.Argument(metavar="[PATH]", help="path in a recipe, such as model.quantizer; unset: the whole recipe")
]


def fields(path: Path_ = "") -> None:
    """Show the fields of a recipe or of a part of it: allowed values, default, meaning."""
    from tokenizers_vq.training.recipe import Recipe

    print_fields(Recipe, path)


def print_fields(config: type[Config], path: str) -> None:
    """A table for each config that may stand at `path` below `config`."""
    from tokenizers_vq.fields import sections

    found = sections(config, path)
    for section in found:
        print_section(f"kind: {section.kind}" if section.kind and len(found) > 1 else path or "a recipe", section)


def print_section(heading: str, section: Section) -> None:
    """What a config is, under a heading, and its fields."""
    import shutil
    import textwrap

    columns = shutil.get_terminal_size().columns
    print("\n".join(textwrap.wrap(f"{heading}: {section.about}", columns)))
    for field in section.fields:
        default = field.default if field.default == "required" else f"default {field.default}"
        print(f"  {field.name}  ({field.type}; {default})")
        print(textwrap.indent("\n".join(textwrap.wrap(field.help, columns - 6)), "      "))
    print()
