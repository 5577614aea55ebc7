"""Build the API reference from the docstrings: python docs/reference.py docs/api."""

import sys
from pathlib import Path

import pdoc

import prior
import tokenizers_vq

for package in (tokenizers_vq, prior):  # pdoc sees only what was imported, and these import their names when asked
    for name in package.__all__:
        getattr(package, name)
pdoc.render.configure(docformat="google", math=False)
pdoc.pdoc("tokenizers_vq", "prior", output_directory=Path(sys.argv[1]))
print(Path(sys.argv[1]) / "index.html")
