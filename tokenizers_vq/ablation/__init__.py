"""Ablations: rows of overrides x seeds over one recipe, trained, judged and written as a table."""
