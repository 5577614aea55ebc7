"""`python -m tokenizers_vq` is `tvq`."""

from tokenizers_vq.cli import main

main()
