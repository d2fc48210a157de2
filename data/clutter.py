"""What a working folder holds beside what people wrote: version control, caches and compiled byte code.

It is left out of a folder that is read, and counted, unless everything is asked for or a pattern names it. A folder or
a file that is itself named as a source is always read.
"""

import contextlib
import os
from typing import Final

from bytelm.data.documents import SkipReason

_VERSION_CONTROL: Final = frozenset(
    (b".git", b".hg", b".svn", b".bzr", b".jj", b".sl", b".pijul", b"_darcs", b"CVS", b"RCS", b"SCCS")
)
_CACHES: Final = frozenset(
    (
        *(b"__pycache__", b"__pypackages__", b".venv", b".virtualenv", b".tox", b".nox", b".eggs"),
        *(b".mypy_cache", b".pytest_cache", b".ruff_cache", b".pytype", b".pyre", b".hypothesis"),
        *(b".ipynb_checkpoints", b".yarn", b".pnpm-store", b".parcel-cache"),
        *(b"node_modules", b"bower_components", b"jspm_packages", b".npm"),
        *(b".next", b".nuxt", b".svelte-kit", b".turbo", b".angular", b".sass-cache", b".nyc_output"),
        *(b".gradle", b".m2", b".ivy2", b".bundle", b".terraform", b".cache", b".ccache", b".dart_tool"),
    )
)
_BYTE_CODE: Final = (b".pyc", b".pyo", b".class", b".elc", b".beam", b".luac")
_CACHE_TAG: Final = b"Signature: 8a477f597d28d172789f06886806bc55"


def folder_clutter(name: bytes, path: bytes | None = None) -> SkipReason | None:
    """Why a folder is left out; None if it is not.

    Args:
        name: Name of the folder.
        path: Its path on this machine. With it, a cache that marks itself as one, a virtual environment and a bare
            repository are left out under any name.
    """
    if name in _VERSION_CONTROL:
        return "version_control"
    if name in _CACHES:
        return "cache"
    if path is None:
        return None
    if name.endswith(b".git") and os.path.isfile(path + b"/HEAD") and os.path.isdir(path + b"/objects"):  # noqa: PTH112, PTH113
        return "version_control"
    if os.path.isfile(path + b"/pyvenv.cfg") or _is_tagged(path):  # noqa: PTH113  a bytes path is no Path
        return "cache"
    return None


def file_clutter(name: bytes) -> SkipReason | None:
    """Why a file is left out by its name; None if it is not."""
    return "byte_code" if name.lower().endswith(_BYTE_CODE) else None


def clutter_above(path_below: bytes) -> SkipReason | None:
    """Why a file is left out by the folders that it lies in below a source, or by its own name; None if it is not."""
    *folders, name = path_below.split(b"/")
    for folder in folders:
        if (reason := folder_clutter(folder)) is not None:
            return reason
    return file_clutter(name)


def _is_tagged(path: bytes) -> bool:
    """Whether a folder says of itself that it is a cache: https://bford.info/cachedir/."""
    with contextlib.suppress(OSError), open(path + b"/CACHEDIR.TAG", "rb") as tag:  # noqa: PTH123
        return tag.read(len(_CACHE_TAG)) == _CACHE_TAG
    return False
