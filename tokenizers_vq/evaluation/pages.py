"""What self-contained HTML pages are made of."""

from __future__ import annotations

import base64
from importlib import resources
from typing import Any


def template(name: str, package: str = "tokenizers_vq.evaluation") -> Any:
    """A jinja2 template of `templates/` in a package, strict about undefined names, escaping everything."""
    import jinja2

    source = resources.files(package).joinpath("templates").joinpath(name).read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source)


def uri(data: bytes, media_type: str = "image/png") -> str:
    """The file inside an address."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
