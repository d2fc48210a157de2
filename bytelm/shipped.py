"""Models that come with bytelm: a name without a path means one of them. Their folders are never written into."""

import importlib.resources
import os
from pathlib import Path
from typing import Final

_FOLDER: Final = "models"


def shipped_models() -> dict[str, Path]:
    """Folder of each model that this installation carries, by name."""
    folder = importlib.resources.files("bytelm") / _FOLDER
    if not isinstance(folder, Path) or not folder.is_dir():
        return {}
    return {path.name: path for path in sorted(folder.iterdir()) if (path / "manifest.json").is_file()}


def is_shipped(folder: Path) -> bool:
    """Whether a folder is that of a shipped model."""
    return folder in shipped_models().values()


def own_folder(name: str) -> Path:
    """Where what is measured of a shipped model here is kept: in the user's cache folder, as XDG places it."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "bytelm" / _FOLDER / name


def shipped_model(name: Path) -> Path | None:
    """The folder of the shipped model with this name; None where there is none, or where a path of that name exists."""
    return None if name.exists() or len(name.parts) != 1 else shipped_models().get(name.name)
