"""Which source of priors a file looks like, for the error that another one was named."""

from __future__ import annotations

import re
from pathlib import Path

from prior.conversion.sources import SOURCES
from tokenizers_vq.conversion import guess as tokenizers


def guess(path: Path) -> str | None:
    """The source whose keys these are, None where they tell nothing; never raises."""
    names = tokenizers.names(path)
    return next((name for name, source in SOURCES.items() if any(re.match(source.mark, key) for key in names)), None)


def hint(source: str, path: Path) -> str:
    """`"; its keys look like those of ..."`, to stand behind an error, where they look like something else."""
    likely = guess(path)
    if likely is not None:
        return "" if likely == source else f"; its keys look like those of source '{likely}'"
    tokenizer = tokenizers.guess(path)
    return f"; its keys look like those of a tokenizer: `tvq convert {tokenizer}`" if tokenizer is not None else ""
