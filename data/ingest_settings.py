"""What an ingestion is asked for: checked before anything is read, and compared before one is resumed."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, get_args

from bytelm.data.documents import name_of
from bytelm.data.duplicates import check_threshold
from bytelm.data.filters import Filters
from bytelm.data.shard_file import FRAME_BYTES
from bytelm.data.sources import STANDARD_INPUT, ReadOptions
from bytelm.data.storage import is_remote, local_path
from bytelm.data.survey import OnError
from bytelm.errors import ConfigError

SHARD_BYTES: Final = 256 << 20
"""Raw bytes after which a shard takes no further document."""

VALIDATION_FRACTION: Final = 0.01
"""Share of a new corpus that is held out."""

_LEVELS: Final = (1, 22)
_MOST_VALIDATION: Final = 0.5
_MOST_FRAME_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSettings:
    """Everything that decides what a corpus will hold.

    Attributes:
        sources: Files, folders, globs, addresses, ``-``.
        read: How they are read.
        filters: What documents have to be.
        keep_duplicates: Keep documents that equal another one.
        near_duplicates: Leave out documents that are at least so similar to another one; None for none.
        on_error: What happens to a file that cannot be read or is damaged; see ``OnError``.
        level: zstd level.
        validation_fraction: Share that is held out.
        shard_bytes: Raw bytes after which a shard takes no further document.
        frame_bytes: Raw bytes of a frame.

    Raises:
        ConfigError: A setting is out of its range, or needs what is not installed.
    """

    sources: tuple[str, ...]
    read: ReadOptions = field(default_factory=ReadOptions)
    filters: Filters = field(default_factory=Filters)
    keep_duplicates: bool = False
    near_duplicates: float | None = None
    on_error: OnError = "named"
    level: int = 9
    validation_fraction: float = VALIDATION_FRACTION
    shard_bytes: int = SHARD_BYTES
    frame_bytes: int = FRAME_BYTES

    def __post_init__(self) -> None:
        if not _LEVELS[0] <= self.level <= _LEVELS[1]:
            raise ConfigError(
                f"level = {self.level}: zstd has the levels {_LEVELS[0]} to {_LEVELS[1]}; 9 is the default"
            )
        if not 0 <= self.validation_fraction <= _MOST_VALIDATION:
            raise ConfigError(
                f"validation_fraction = {self.validation_fraction}: a share from 0 to {_MOST_VALIDATION} is needed"
            )
        if not (1 <= self.frame_bytes <= _MOST_FRAME_BYTES and self.shard_bytes >= 1):
            raise ConfigError(
                f"frame_bytes = {self.frame_bytes}, shard_bytes = {self.shard_bytes}: "
                f"at least 1, and a frame at most {_MOST_FRAME_BYTES}"
            )
        if self.on_error not in get_args(OnError):
            raise ConfigError(f"on_error = {self.on_error!r}: there are 'named', 'stop' and 'skip'")
        check_threshold(self.near_duplicates)

    def as_json(self) -> dict[str, Any]:
        """Everything but the sources as plain JSON values; lists where there are tuples."""
        tree = asdict(self)
        del tree["sources"]
        return {name: _plain(value) for name, value in tree.items()}

    def places(self) -> list[str]:
        """The sources, such that another working folder makes no difference."""
        return [name_of(_whole(source)) for source in self.sources]


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first setting that differs, as a person would say it; empty if none does.

    Leaving out what cannot be read is allowed where it was not before: nothing was left out till then.
    """
    for name, value in now.items():
        if name == "on_error" and value == "skip":
            continue
        if isinstance(value, dict):
            if found := difference(before.get(name) or {}, value):
                return found
        elif before.get(name) != value:
            return f"{name} was {before.get(name)!r} and is now {value!r}"
    return ""


def _whole(source: str) -> str:
    plain = source == STANDARD_INPUT or is_remote(source) or source.startswith("hf:")
    return source if plain else os.path.abspath(local_path(source))  # noqa: PTH100  a glob is no Path, and links stay


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value
