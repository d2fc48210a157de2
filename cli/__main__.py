"""``python -m bytelm.cli`` and the ``bytelm`` program."""

import os
import sys

from bytelm.cli.app import run


def main() -> None:
    """Run the command line and leave with its exit code."""
    # Threads that wait for each other spin for milliseconds by default: beside one busy process a training step then
    # takes three times as long, beside another team of threads fifty times (docs/experiments.md, 2026-11-23).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    sys.exit(run())


if __name__ == "__main__":
    main()
