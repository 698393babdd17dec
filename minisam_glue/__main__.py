"""The command `minisam`, as python -m minisam_glue."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
