"""`python -m cm3leon_jax COMMAND` is the same as `cm3leon COMMAND`."""

import sys

from cm3leon_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
