"""`python -m crnode` and the `crnode` command."""

from __future__ import annotations

import sys

from crnode.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
