"""`tvq app`."""

from __future__ import annotations

import importlib.util
import socket
from typing import Annotated

import typer

from tokenizers_vq.cli import common


def app(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="tokenizers and priors: runs, saved folders, shipped or published names, owner/name; unset: all "
            "shipped ones",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="address to listen at; 0.0.0.0 lets other machines in, without a password")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="port; unset: the first free one from 7860")
    ] = None,
    device: common.Device = "auto",
    precision: Annotated[
        str, typer.Option(metavar="auto|fp32|bf16", help="auto: bf16 where the device has it in hardware")
    ] = "auto",
) -> None:
    """Open a page to play with: pictures through tokenizers, their codes, new pictures from priors."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page needs gradio: pip install 'tokenizers-vq[app]'")
    if port is not None:
        _check(host, port)
    from tokenizers_vq.app.models import open_models

    opened = open_models(models or (), device=device, precision=precision)
    from tokenizers_vq.app.page import serve  # once the names are known to be right: gradio takes seconds to import

    serve(opened, host, port, started=lambda address: print(address, flush=True))


def _check(host: str, port: int) -> None:
    """Raises `ValueError` where nothing can listen, before models are opened."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            trial.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"--port: cannot listen at {host}:{port} ({error.strerror or error}): give another port, or none for "
                "the first free one"
            ) from None
