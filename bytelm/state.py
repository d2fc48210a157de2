"""What a training counts beside weights, optimizer and loader; most of it is part of a checkpoint."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bytelm.mfu import PeakFlops


@dataclass(kw_only=True)
class Meter:
    """Sums over the steps since the last logged one; part of a checkpoint, so that a stop leaves no gap in the log."""

    bits_K: list[float]
    """Bits of each head over its targets."""
    count_K: list[int]
    """Targets of each head."""
    loss: float = 0.0
    steps: int = 0
    bytes: int = 0
    seconds: float = 0.0

    @classmethod
    def empty(cls, prediction_heads: int) -> "Meter":
        """Nothing counted."""
        return cls(bits_K=[0.0] * prediction_heads, count_K=[0] * prediction_heads)

    def bits_per_byte_by_head(self) -> tuple[float | None, ...]:
        """Mean bits of each head's targets; None for a head that had none."""
        return tuple(bits / count if count else None for bits, count in zip(self.bits_K, self.count_K, strict=True))


@dataclass(kw_only=True)
class Safety:
    """How the run has fared; part of a checkpoint."""

    skipped_steps: int = 0
    """Steps whose loss or gradient was not finite, in all."""
    in_a_row: int = 0
    """Of these the last ones without a good one since."""
    rollbacks: int = 0
    """How often the run has gone back to a checkpoint."""
    learning_rate_ratio: float = 1.0
    """Of the schedule's rate: halved each time."""
    best_bits_per_byte: float | None = None
    """Of head 0 in the best validation."""
    validation_due: bool = False
    """The validation of this step was interrupted."""


@dataclass(kw_only=True)
class State:
    """What a step changes, beside weights, optimizer and loader."""

    step: int
    bytes_seen: int
    meter: Meter
    safety: Safety
    checkpoint: Path | None = None
    """The newest one that is on the disk."""
    checkpoint_step: int | None = None
    """Its step."""
    saved_step: int | None = None
    """The last step that was given to the saver, or that the run was taken up from."""
    refusal: str = ""
    """What the disk refused last."""
    peak_flops: "PeakFlops | None" = None
    """Of the device; None until it is looked up or measured."""


class Clock:
    """Seconds in training, over all starts of a run."""

    def __init__(self, elapsed_before_s: float) -> None:
        self._begun_s = time.perf_counter() - elapsed_before_s

    def elapsed_s(self) -> float:
        """Seconds until now."""
        return time.perf_counter() - self._begun_s
