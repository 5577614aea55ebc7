"""The `tvq-prior` command: one verb a file, parsing and printing only."""

from prior.cli.app import app, main

__all__ = ["app", "main"]
