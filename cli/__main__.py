"""``python -m bytelm.cli`` and the ``bytelm`` program."""

import sys

from bytelm.cli.app import run


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run())


if __name__ == "__main__":
    main()
