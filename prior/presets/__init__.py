"""YAML files: one a prior preset."""
