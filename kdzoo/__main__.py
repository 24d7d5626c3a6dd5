"""``python -m kdzoo``, which torchrun can start."""

from kdzoo.cli import main

main()
