"""YAML files: one a model (`models/`) or recipe (`recipes/`)."""
