"""What a training tells while it runs: frozen records, in the order in which things happen."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bytelm.distributed import ParallelUsed
from bytelm.job import PrecisionUsed

BitsByHead = tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Started:
    """The run is set up; the first step comes next."""

    run: Path
    parameters: int
    device: str
    precision: PrecisionUsed
    attention: str
    """The backend that computes attention."""
    attention_reason: str
    """Why it is this one: half a sentence for people."""
    compiled: bool
    """Whether layers are compiled in training."""
    best_bits_per_byte: float | None
    """Of head 0, in the best validation before; None where there was none."""
    held_out_bytes: int
    """Bytes that each validation scores; 0 where the corpus holds nothing out."""
    step: int
    """Steps that were done before, 0 in a fresh run."""
    resumed_from: Path | None
    damaged: tuple[str, ...]
    """A line for each newer checkpoint that was found damaged and renamed."""
    ranks: int = 1
    """Processes that train together."""
    parallel: ParallelUsed = "none"
    """How they share the model."""
    decoder: str = ""
    """What writes the samples of validations: the engine with its instruction set, or torch and why."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A logged step; sums and means are over the steps since the one logged before."""

    step: int
    fraction: float
    """Share of the budget that is spent, 0 … 1."""
    bytes_seen: int
    flops: float
    """Operations that the model needed for these bytes, forward and backward."""
    elapsed_s: float
    """Seconds in training, validation and saving, over all starts of the run."""
    bits_per_byte_by_head: BitsByHead
    """Mean over all targets that count, ends of documents included."""
    loss: float | None
    """Nats: the sum over heads, as it is minimised; None where every step was skipped."""
    grad_norm: float | None
    """Of the last step, before clipping; None where it was not finite."""
    learning_rate: float
    """Of the last step."""
    bytes_per_second: float
    """In training steps, without validation and saving."""
    mfu: float | None
    """Model FLOP utilisation in these steps, 0 … 1; None where the device's peak is not known yet."""
    memory_bytes: int | None
    """Now: of the process on a CPU, of the allocator on a GPU; None where the system does not say."""
    peak_memory_bytes: int
    skipped_steps: int
    """Steps of the run so far whose loss or gradient was not finite, and which changed no weight."""
    replaced_windows: int
    """Windows since this start that stand in for damaged ones."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Held-out bytes were scored."""

    step: int
    bytes_seen: int
    flops: float
    elapsed_s: float
    bits_per_byte_by_head: BitsByHead
    best_bits_per_byte: float | None
    """Of head 0, in the best validation of the run so far, this one included."""
    agreement_by_head: tuple[float | None, ...]
    """Estimated acceptance: see ``bytelm.evaluate.BitsPerByte``."""
    bytes_per_step_estimate: float | None
    """Of greedy self-speculative decoding."""
    scored_bytes: int
    context_bytes: int
    stride: int
    prompt: str
    """The beginning of held-out data, as text."""
    sample: str
    """How the model goes on, as text; bytes that are no UTF-8 are escaped, control characters are not."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint was written."""

    step: int
    checkpoint: Path


@dataclass(frozen=True, kw_only=True)
class Refused:
    """The disk refused something. Training goes on; what was saved before is whole."""

    step: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A step whose loss or gradient was not finite: no weight has changed."""

    step: int
    what: Literal["loss", "gradient"]
    in_a_row: int


@dataclass(frozen=True, kw_only=True)
class Replaced:
    """A part of a corpus is damaged, and other windows stand in for its own."""

    step: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class RolledBack:
    """The run went back, and goes on at half the learning rate."""

    step: int
    """The step that it goes on from."""
    from_step: int
    checkpoint: Path | None
    """Where from; None is the beginning."""
    learning_rate_ratio: float
    """Of the schedule's rate, from now on."""
    damaged: tuple[str, ...]
    """A line for each newer checkpoint that was found damaged."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The last record: the budget is spent, or the caller asked to stop. Everything is saved."""

    reason: Literal["budget", "stopped"]
    step: int
    bytes_seen: int
    elapsed_s: float
    checkpoint: Path


Event = Started | Progress | Validation | Saved | Refused | Skipped | Replaced | RolledBack | Finished
