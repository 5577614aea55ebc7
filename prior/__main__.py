"""`python -m prior` is `tvq-prior`, as torchrun starts it."""

from prior.cli import main

main()
