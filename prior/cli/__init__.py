"""The `tvq-prior` command."""
