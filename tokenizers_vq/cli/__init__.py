"""The `tvq` command: one verb a file, parsing and printing only."""

from tokenizers_vq.cli.app import main

__all__ = ["main"]
