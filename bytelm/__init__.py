"""bytelm: language models that read raw bytes and predict the next K at once.

    import bytelm

    model = bytelm.load("runs/a")
    for piece in model.stream(b"def main(", max_bytes=256):
        ...

Public names load on first use, so that ``import bytelm`` costs nothing and ``bytelm --help`` answers at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bytelm.api import LanguageModel, load
    from bytelm.config import RunConfig
    from bytelm.errors import BytelmError

__version__ = "0.1.0"

_HOMES = {
    "BytelmError": "bytelm.errors",
    "LanguageModel": "bytelm.api",
    "RunConfig": "bytelm.config",
    "load": "bytelm.api",
}

__all__ = ["BytelmError", "LanguageModel", "RunConfig", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bytelm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
