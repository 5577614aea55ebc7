"""Published priors by name: the cached copy, else downloaded from the Hub, checked and converted once."""

from __future__ import annotations

from pathlib import Path

from prior.conversion import catalogue
from prior.conversion.write import convert_to_folder
from tokenizers_vq import folders
from tokenizers_vq.conversion.download import download

COMMAND = "tvq-prior convert"


def fetch(name: str) -> Path:
    """The folder of a published prior in our layout: the cached copy, else downloaded from the Hub and converted.

    Its tokenizer is fetched first. Raises `FileNotFoundError` where weights of one of them are not on the Hub, saying
    what to fetch and which command converts it, or the Hub does not give them; `ValueError` for files with another
    checksum.
    """
    published, folder = catalogue.entry(name), catalogue.converted(name)
    if folders.local(folder) is not None:
        return folder
    if published.hub is None:
        raise FileNotFoundError(catalogue.by_hand(published))
    try:
        convert_to_folder(published.source, download(published, COMMAND), None, folder, name=name)
    except OSError:  # another process may have been first
        if folders.local(folder) is None:
            raise
    return folder
