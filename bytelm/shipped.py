"""Models that come with bytelm: a name without a path means one of them. Their folders are never written into."""

import importlib.resources
from pathlib import Path
from typing import Final

from bytelm.files import user_cache

_FOLDER: Final = "models"


def shipped_models() -> dict[str, Path]:
    """Folder of each model that this installation carries, by name."""
    folder = importlib.resources.files("bytelm") / _FOLDER
    if not isinstance(folder, Path) or not folder.is_dir():
        return {}
    return {path.name: path for path in sorted(folder.iterdir()) if (path / "manifest.json").is_file()}


def is_shipped(folder: Path) -> bool:
    """Whether a folder is that of a shipped model."""
    return folder.exists() and shipped_model(folder) is not None


def own_folder(name: str) -> Path:
    """Where what is measured of a shipped model here is kept."""
    return user_cache() / _FOLDER / name


def shipped_model(name: Path) -> Path | None:
    """The folder of the shipped model that a name or the path of its folder means; None where it means none.

    A path that exists comes before a model of the same name.
    """
    if name.exists():
        folder = name.resolve()
        return next((one for one in shipped_models().values() if one.resolve() == folder), None)
    return shipped_models().get(name.name) if len(name.parts) == 1 else None
