"""Data that every machine has: the sources of Python's standard library."""

import shutil
import sysconfig
from pathlib import Path

OTHERS = ("site-packages", "dist-packages", "__pycache__", "*.so", "*.a", "*.pyc")


def standard_library(folder: Path) -> Path:
    """Copy them to a folder, unless it is there."""
    if not folder.exists():
        shutil.copytree(sysconfig.get_path("stdlib"), folder, ignore=shutil.ignore_patterns(*OTHERS), symlinks=True)
    return folder
