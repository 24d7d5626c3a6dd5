"""``python -m kdzoo``, which torchrun can start."""

from kdzoo.cli import main

if __name__ == "__main__":  # worker processes import it again
    main()
