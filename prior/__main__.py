"""`python -m prior` is `tvq-prior`."""

from prior.cli import main

main()
