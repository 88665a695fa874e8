"""`python -m sightline`, as torchrun starts it: the same as the command `sightline`."""

from __future__ import annotations

from sightline.cli.app import main

if __name__ == "__main__":
    main()
