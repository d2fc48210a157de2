"""How a decoding benchmark measures: clocks, the time inside the library, rates by round, ratios and tables.

Variants take turns in rounds. A rate is the median of its rounds, with the least and the most beside it. A ratio is the
median of the rounds' ratios, so that a neighbour who slows a round slows both sides.
"""

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bytelm.decode import DecodePlan, Request, decode_batch
from bytelm.engine import Engine
from bytelm.generation import GenerateSettings, Step

Clock = Callable[[], float]


def clock(threads: int) -> Clock:
    """Processor time where one thread does all the work, so that neighbours count little; else the time on the wall."""
    return time.process_time if threads == 1 else time.perf_counter


@dataclass(slots=True)
class Ran:
    """What some prompts took.

    Attributes:
        bytes: Generated.
        seconds: From the first step, prompts having been read, to the last byte.
        inside: Of these, inside the library.
        steps: Passes of one sequence.
        rows: Of these passes.
    """

    bytes: int = 0
    seconds: float = 0.0
    inside: float = 0.0
    steps: int = 0
    rows: int = 0

    def add(self, other: "Ran") -> None:
        """Count another run as well."""
        self.bytes += other.bytes
        self.seconds += other.seconds
        self.inside += other.inside
        self.steps += other.steps
        self.rows += other.rows

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.bytes / self.seconds


@dataclass(slots=True)
class Spans:
    """Calls of ``decoder_run``: when each began, and the seconds of all."""

    begins: list[float] = field(default_factory=list)
    inside: float = 0.0


@contextlib.contextmanager
def watched(engine: Engine, now: Clock) -> Iterator[Spans]:
    """Time the blocks of steps of an engine while something decodes through it."""
    spans, run = Spans(), engine.call.decoder_run

    def timed(*arguments: Any) -> int:
        begin = now()
        status = run(*arguments)
        spans.inside += now() - begin
        spans.begins.append(begin)
        return status

    calls = vars(engine.call)
    calls["decoder_run"] = timed
    try:
        yield spans
    finally:
        calls["decoder_run"] = run


def decode(
    engine: Engine,
    prompts: Sequence[bytes],
    plan: DecodePlan | None,
    *,
    now: Clock,
    context_bytes: int,
    slots: int = 1,
    steps: list[Step] | None = None,
    **settings: Any,
) -> Ran:
    """Continue prompts as a user does, one after another or side by side; reading the prompts is not counted.

    Args:
        engine: The model.
        prompts: At most ``slots`` where these are several, so that all are read before the first step.
        plan: What was measured; the priors of the shape where None.
        now: Clock.
        context_bytes: Window of the model.
        slots: Sequences at a time.
        steps: Where to note them; None for nowhere.
        **settings: Of each continuation, as of ``GenerateSettings``; prompt n is sequence n.
    """
    assert slots == 1 or len(prompts) <= slots
    asked = [Request(prompt, GenerateSettings(sequence=place, **settings)) for place, prompt in enumerate(prompts)]
    groups = [asked] if slots > 1 else [[one] for one in asked]
    ran = Ran()
    for group in groups:
        with watched(engine, now) as spans:
            for _, step in decode_batch(engine, group, context_bytes=context_bytes, slots=slots, tuned=plan):
                ran.bytes += len(step.data)
                ran.steps += 1
                ran.rows += step.rows
                if steps is not None:
                    steps.append(step)
            ran.seconds += now() - spans.begins[0]
        ran.inside += spans.inside
    return ran


class Rates:
    """Bytes a second of variants, round by round."""

    def __init__(self) -> None:
        self._by: dict[str, list[float]] = {}

    def add(self, name: str, rate: float) -> None:
        """Note a round."""
        self._by.setdefault(name, []).append(rate)

    @property
    def names(self) -> list[str]:
        """In the order in which they came."""
        return list(self._by)

    def median(self, name: str) -> float:
        """Of its rounds."""
        return statistics.median(self._by[name])

    def summary(self) -> dict[str, dict[str, float]]:
        """Of each variant."""
        return {name: spread(rates) for name, rates in self._by.items()}

    def over(self, one: str, other: str | None) -> float | None:
        """Median of the rounds' ratios; None where one of them was not measured."""
        if other is None or one not in self._by or other not in self._by:
            return None
        ratios = [mine / its for mine, its in zip(self._by[one], self._by[other], strict=True)]
        return round(statistics.median(ratios), 3)

    def best(self, prefix: str) -> str | None:
        """The fastest of the variants whose names begin like this; None where there is none."""
        return max((name for name in self._by if name.startswith(prefix)), key=self.median, default=None)


def spread(values: Sequence[float], digits: int = 1) -> dict[str, float]:
    """Median and range."""
    return {
        "median": round(statistics.median(values), digits),
        "least": round(min(values), digits),
        "most": round(max(values), digits),
    }


def table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[object]]) -> None:
    """Print a table in Markdown; None is a dash."""
    print(f"\n{title}\n\n| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(map(_cell, cells))} |")
    sys.stdout.flush()


def say(line: str) -> None:
    """Tell a person who waits."""
    print(line, file=sys.stderr, flush=True)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict):  # a spread
        return f"{_cell(value['median'])} ({_cell(value['least'])} … {_cell(value['most'])})"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
