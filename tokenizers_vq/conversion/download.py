"""Published tokenizers by name: the cached copy, else downloaded from the Hub, checked and converted once."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from tokenizers_vq import folders
from tokenizers_vq.conversion import catalogue
from tokenizers_vq.conversion.write import convert_to_folder


def fetch(name: str) -> Path:
    """The folder of a published tokenizer in our layout: the cached copy, else downloaded from the Hub and converted.

    Raises `FileNotFoundError` where the weights are not on the Hub, saying what to fetch and which command converts
    it, and where the Hub does not give them; `ValueError` for files with another checksum.
    """
    published, folder = catalogue.entry(name), catalogue.converted(name)
    if folders.local(folder) is not None:
        return folder
    if published.hub is None:
        raise FileNotFoundError(catalogue.by_hand(published))
    weights, config = download(published), published.to_dict()["config"]
    try:
        convert_to_folder(published.source, weights, config, folder, name=name, card=catalogue.card(published))
    except OSError:  # another process may have been first
        if folders.local(folder) is None:
            raise
    return folder


def download(published: catalogue.Entry, command: str = "tvq convert") -> Path:
    """The files of a Hub repository, their checksums checked: the path that `convert` takes.

    Raises `FileNotFoundError` where the Hub does not give them, `ValueError` for files with another checksum.
    """
    assert published.hub is not None
    patterns = [file.name for file in published.files]
    try:
        folder = Path(
            huggingface_hub.snapshot_download(published.hub, revision=published.revision, allow_patterns=patterns)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise FileNotFoundError(
            f"'{published.name}' lies in the Hub repository {published.hub}, which cannot be reached ({reason}): check "
            "the network, or HF_TOKEN and the consent that it may ask for on its page"
        ) from None
    for file in published.files:
        if file.sha256 is not None and (found := catalogue.sha256(folder / file.name)) != file.sha256:
            raise ValueError(
                f"{folder / file.name} has sha256 {found[:12]}, the catalogue says {file.sha256[:12]}: "
                "delete it and load again; if it stays so, the publisher has changed the file"
            )
    hits = sorted(folder.glob(published.checkpoint or "*")) if published.checkpoint != "." else [folder]
    if len(hits) != 1:
        raise FileNotFoundError(
            f"the Hub repository {published.hub} holds {len(hits)} files {published.checkpoint}, expected one: "
            f"give one to `{command} {published.source}`"
        )
    return hits[0]
