"""Quantizers: features to codes and back. One a file; their configs form a union on `kind`."""
