"""`python -m crnode` and the `crnode` command."""

from __future__ import annotations

import signal
import sys

# While modules are read nothing has begun: Ctrl-C ends the process as it ends any other, without a traceback.
_OURS = signal.getsignal(signal.SIGINT) is signal.default_int_handler
if _OURS:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from crnode.cli.app import main as run  # noqa: E402


def main() -> int:
    """The `crnode` command."""
    if _OURS:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


if __name__ == "__main__":
    sys.exit(main())
