"""The `tvq` command: one verb a file, parsing and printing only."""
