"""Options that several commands share, with one help text."""

from __future__ import annotations

from typing import Annotated

import typer

WHAT, HOW = "What is drawn", "How it is drawn"

Temperature = Annotated[
    float, typer.Option(help="below 1: safer, above 1: wilder; 0: always the likeliest code", rich_help_panel=HOW)
]
Guidance = Annotated[
    float,
    typer.Option(help="follow the class or text more closely (classifier-free guidance); 1 = off", rich_help_panel=HOW),
]
Seed = Annotated[int, typer.Option(help="the same seed gives the same images", rich_help_panel=HOW)]
