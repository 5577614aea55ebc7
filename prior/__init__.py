"""Priors: transformers over the codes of a tokenizer, for generating new images."""
