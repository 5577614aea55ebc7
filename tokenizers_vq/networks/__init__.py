"""Encoders and decoders. One family a file; their configs form unions on `kind`."""
