"""Every error that a caller can cause, under one root.

    BytelmError                the command line prints its one line and exits 2
    ├── ConfigError            a setting that is unknown, impossible or contradicts another
    ├── SourceError            a source to ingest that is missing, cannot be read or is damaged
    ├── CorpusError            a corpus that is missing, empty, too short or not the expected one
    │   └── ShardError         a shard whose bytes are damaged, truncated or of an unknown version
    ├── CheckpointError        a run or checkpoint that is missing, damaged or belongs elsewhere
    ├── TrainingError          a run that cannot go on: nothing is finite, no memory, a process lost
    ├── GenerationError        a request to the decoder that it cannot honour
    │   └── KeywordError       a keyword that a call does not have, or an argument that it lacks
    └── StorageError           a disk that refuses a write: full, read-only, over quota

A message says what was wrong, what was found and what to do, in one line. What only bytelm itself can get
wrong is an ``assert``, never one of these.
"""

from typing import Literal


class BytelmError(Exception):
    """Root of all errors that a caller can cause.

    Attributes:
        told: Whether another process of the same training says it, so that this one need not.
    """

    told = False


class ConfigError(BytelmError):
    """A setting is unknown, impossible or contradicts another."""


class SourceError(BytelmError):
    """A source to ingest is missing, cannot be read, or does not hold what it should.

    Attributes:
        reason: ``unreadable``: the system or the other side refuses; ``damaged``: its bytes are not what its form
            promises; ``no_field``: a table without the column.
    """

    def __init__(self, message: str, *, reason: Literal["unreadable", "damaged", "no_field"] = "unreadable") -> None:
        super().__init__(message)
        self.reason: Literal["unreadable", "damaged", "no_field"] = reason


class CorpusError(BytelmError):
    """A corpus is missing, empty, too short or not the one that was expected."""


class ShardError(CorpusError):
    """A shard is damaged, truncated or of a version that this bytelm does not know."""


class CheckpointError(BytelmError):
    """A run or checkpoint is missing, damaged or belongs to something else."""


class TrainingError(BytelmError):
    """A run cannot go on: nothing is finite any more, memory is used up, or one of its processes has ended."""


class GenerationError(BytelmError):
    """The decoder cannot honour a request."""


class KeywordError(GenerationError, TypeError):
    """A call of the Python interface has no such keyword, or lacks an argument; a ``TypeError`` too, as Python's is."""


class StorageError(BytelmError):
    """The disk refuses a write: full, read-only or over quota."""


def weight_not_finite(place: str, name: str) -> CheckpointError:
    """The error for a weight that is not finite: whatever is computed with it is no figure and no text.

    Args:
        place: File or model that holds it.
        name: Of the weight.
    """
    return CheckpointError(
        f"{place}: the weight {name} is not finite, so its training diverged; use another checkpoint"
    )
