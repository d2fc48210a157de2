"""``python -m bytelm.cli`` and the ``bytelm`` program."""

import io
import os
import sys

from bytelm.cli.app import run


def main() -> None:
    """Run the command line and leave with its exit code."""
    # Threads that wait for each other spin for milliseconds by default: beside one busy process a training step then
    # takes three times as long, beside another team of threads fifty times (docs/experiments.md, 2026-11-23).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Windows are cut into documents, so matrix products come in ever new shapes. oneDNN, and torch's layer around it,
    # keep up to a megabyte for each of the last 1,024 of them (docs/experiments.md, 2026-11-24).
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, "128")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and "utf" not in stream.encoding.lower():
            stream.reconfigure(errors="backslashreplace")  # what cannot be shown is named, and is no error
    code = run()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Threads that exchanged tensors with other processes may still be tidying up, and would be cut off in the
        # middle by Python's own end: now and then the process then aborts (docs/experiments.md, 2026-11-24).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
