"""Models that come with bytelm: a name without a path means one of them."""

import importlib.resources
from pathlib import Path
from typing import Final

_FOLDER: Final = "models"


def shipped_models() -> dict[str, Path]:
    """Folder of each model that this installation carries, by name."""
    folder = importlib.resources.files("bytelm") / _FOLDER
    if not isinstance(folder, Path) or not folder.is_dir():
        return {}
    return {path.name: path for path in sorted(folder.iterdir()) if (path / "manifest.json").is_file()}


def shipped_model(name: Path) -> Path | None:
    """The folder of the shipped model with this name; None where there is none, or where a path of that name exists."""
    return None if name.exists() or len(name.parts) != 1 else shipped_models().get(name.name)
