"""What a task is given and what it gives back."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bytelm.api import LanguageModel
from bytelm.engine import NOT_FINITE
from bytelm.errors import GenerationError
from bytelm.held_out import HeldOut

PAPER_PASS_AT: Final = ((1, 0.1), (10, 0.8), (100, 0.8))
"""For each k of pass@k the temperature that was best for the byte model of eight heads (Gloeckle et al. 2024, S12)."""

Progress = Callable[[int, int | None], None]
"""Told what is done and what is to do in all, None where nobody knows."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A model and what is asked of it. A task reads what concerns it.

    Attributes:
        model: Ready to decode.
        checkpoint: Where the model comes from.
        held_out: Opens the documents to evaluate on.
        folder: Where the results of the run lie, for what can be resumed; None where nothing is kept.
        progress: Told how far it is.
        data: File or folder of a task's own data; None for the Hugging Face hub.
        limit: Examples at most; all where None.
        seed: Of everything that is drawn.
        context_bytes: Ids of a window; that of training where None.
        stride: Ids that a window advances; half the window where None.
        limit_bytes: Held-out bytes to score at most; all where None.
        compress: Whether held-out bytes are brought to the size that bits per byte promise, and back.
        prompts: Held-out prompts that are continued.
        max_bytes: Bytes of a continuation; the task's own choice where None.
        run_code: Whether generated programs are run.
        samples: Programs that are generated for a problem, at each temperature.
        pass_at: For each k of pass@k the temperature of its samples.
    """

    model: LanguageModel
    checkpoint: Path
    held_out: Callable[[], HeldOut]
    folder: Path | None = None
    progress: Progress = lambda done, total: None  # noqa: ARG005  a stand-in has the names of the real one
    data: Path | None = None
    limit: int | None = None
    seed: int = 0
    context_bytes: int | None = None
    stride: int | None = None
    limit_bytes: int | None = None
    compress: bool = False
    prompts: int = 16
    max_bytes: int | None = None
    run_code: bool = False
    samples: int = 200
    pass_at: tuple[tuple[int, float], ...] = PAPER_PASS_AT


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a task found.

    Attributes:
        facts: Names and JSON values.
        lines: The same for people, the first line first.
        samples: One JSON object for each example, where a task has examples.

    Raises:
        GenerationError: A fact is not finite: then the model's logits are not.
    """

    facts: dict[str, Any]
    lines: tuple[str, ...]
    samples: tuple[dict[str, Any], ...] = field(default=())

    def __post_init__(self) -> None:
        if not _all_finite(self.facts):
            raise GenerationError(NOT_FINITE)


def _all_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_all_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_all_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def share(value: float | None) -> str:
    """A share for people: three decimals, a dash where there is none."""
    return "–" if value is None else f"{value:.3f}"


def longer_than(context_bytes: int, texts: Iterable[bytes]) -> int:
    """How many texts do not fit into a window behind the end-of-document id before them.

    Example:
        >>> longer_than(4, [b"abc", b"abcd"])
        1
    """
    return sum(1 + len(text) > context_bytes for text in texts)


def cut_prompts(count: int, context_bytes: int) -> tuple[str, ...]:
    """What to tell people about prompts that the decoder cuts: a line, or nothing where there are none."""
    if not count:
        return ()
    read = context_bytes // 2
    return (f"{count} prompts are longer than the window of {context_bytes} bytes: the last {read} bytes are read",)
