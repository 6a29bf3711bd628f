"""`python -m star_jax` is `star`."""

import sys

from star_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
