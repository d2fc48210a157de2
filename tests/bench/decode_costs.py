"""What a step costs: passes by their rows, and a planner's table of it for models that would take long to tune."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from decode_rates import Clock, clock, say, table
from decode_subjects import CONTEXTS, LARGE, MATRIX_KINDS, Subjects

from bytelm.decoding.engine_decode import cost_table
from bytelm.drafting import StepCost
from bytelm.engine import Cache, CalibrationTable, Decoder, Engine, SequenceSettings, Session
from bytelm.pair_correction import PairCorrection
from bytelm.vocab import EOD

ROWS: Final = (1, 2, 4, 8, 16, 32)
TABLE_ROWS: Final = (1, 2, 4, 8, 16, 32, 48)
"""Rows that the planner's table has."""
_LEAST_S: Final = 0.002
"""Of what is timed at once."""
_LONG_S: Final = 0.02
"""Of a pass that leaves nothing of other passes in the caches but a small part."""
_STEPS: Final = 12
PLAIN, ADAPTIVE, ALL_HEADS, LOOKUP = 0, 1, 2, 3
"""Policies of decode.h."""


class Passes:
    """Passes of one engine at one length of context, without Python's part of a call.

    Args:
        engine: The model; one thread.
        past: Bytes before.
        rows: At most.
    """

    def __init__(self, engine: Engine, past: int, rows: int) -> None:
        self._engine, room = engine, past + rows
        self._session = Session(engine, rows=max(rows, 64), capacity=room, threads=1)
        self._cache = Cache(engine, room)
        self._session.prefill(self._cache, np.random.default_rng(0).integers(0, 256, past, np.int32))
        self._pointers = np.array([self._cache.pointer], np.uintp)
        self._ids = np.zeros(rows, np.int32)
        self._logits = np.empty((rows, engine.config.vocabulary_size), np.float32)

    def run(self, rows: int) -> Callable[[], None]:
        """A function that runs a pass of so many rows, again and again at the same place."""
        counts = np.array([rows], np.int32)
        call = getattr(self._engine.call, "pass")
        arguments = (
            self._session.pointer,
            1,
            self._pointers.ctypes.data,
            counts.ctypes.data,
            None,
            self._ids.ctypes.data,
            self._logits.ctypes.data,
        )

        def one_pass(_keep: object = counts) -> None:
            assert call(*arguments) == 0

        return one_pass

    def close(self) -> None:
        """Give the memory back."""
        self._cache.close()
        self._session.close()


def take_turns(runs: dict[int, Callable[[], None]], repeats: int, now: Clock) -> dict[int, float]:
    """Seconds of each of some functions: medians over rounds in which they take turns."""
    first, seconds = {}, {name: list[float]() for name in runs}
    for name, run in runs.items():
        run()
        begin = now()
        run()
        first[name] = now() - begin
    counts = {name: max(1, min(50, round(_LEAST_S / max(one, 1e-6)))) for name, one in first.items()}
    for _ in range(repeats):
        for name, run in runs.items():
            if first[name] < _LONG_S:
                run()  # this one finds what other passes left in the caches; a step comes after another like it
            begin = now()
            for _ in range(counts[name]):
                run()
            seconds[name].append((now() - begin) / counts[name])
    return {name: statistics.median(values) for name, values in seconds.items()}


def pass_seconds(engine: Engine, past: int, rows: Sequence[int], repeats: int) -> dict[int, float]:
    """Seconds of passes of one sequence by their rows, head 0 at each row."""
    passes = Passes(engine, past, max(rows))
    seconds = take_turns({count: passes.run(count) for count in rows}, repeats, clock(1))
    passes.close()
    return seconds


def rows(subjects: Subjects) -> dict[str, Any]:
    """Cost of a pass of some rows over one of one row."""
    repeats = 3 if subjects.quick else 9
    cost: dict[str, Any] = {}
    milliseconds: dict[str, Any] = {}
    for model, name in ((None, "trained"), (LARGE, LARGE)):
        for past in CONTEXTS:
            say(f"rows, {name}, {past} bytes before")
            shown = {}
            for kind in MATRIX_KINDS:
                seconds = pass_seconds(subjects.engine(model, kind), past, ROWS, repeats)
                found = {str(count): round(seconds[count] / seconds[1], 3) for count in ROWS}
                cost.setdefault(name, {}).setdefault(kind, {})[str(past)] = found
                milliseconds.setdefault(name, {}).setdefault(kind, {})[str(past)] = {
                    str(count): round(1e3 * seconds[count], 4) for count in ROWS
                }
                shown[kind] = (1e3 * seconds[1], *found.values())
            columns = ("ms, one row", *(f"{count} rows over one" for count in ROWS))
            table(f"Rows of a pass, {name}, {past} bytes before, one thread", columns, shown)
    return {"row_cost": cost, "pass_ms": milliseconds}


def measured_cost(engine: Engine, pairs: PairCorrection | None, *, past: int, repeats: int) -> StepCost:
    """Cost of the steps of one sequence, so many bytes being before them; ``bytelm tune`` takes longer for it.

    Passes are timed as they are. A step without drafts tells what choosing and noting cost; a step with all heads tells
    what a head costs, with its correction, weighing and counting.

    Args:
        engine: The model, whose draft heads are linear.
        pairs: Correction of its heads.
        past: Bytes before.
        repeats: Rounds.
    """
    drafts, now = engine.head_count - 1, clock(1)
    seconds = pass_seconds(engine, past, TABLE_ROWS, repeats)
    plain, heads = (_step_seconds(engine, past, policy, pairs, repeats, now) for policy in (PLAIN, ALL_HEADS))
    beside = max(0.0, plain - seconds[1])
    head = max(0.0, heads - beside - float(np.interp(1 + drafts, TABLE_ROWS, list(seconds.values())))) / drafts
    # A pass with more rows is never cheaper: what looks so is noise, and would mislead the planner.
    rising = np.maximum.accumulate(list(seconds.values())) + beside
    return StepCost(TABLE_ROWS, tuple(rising.tolist()), head)


def _step_seconds(
    engine: Engine, past: int, policy: int, pairs: PairCorrection | None, repeats: int, now: Clock
) -> float:
    """Seconds of a step inside the library, about so many bytes before it."""
    flat = StepCost((1, 48), (1.0, 1.0), 0.0)
    decoder = Decoder(
        engine,
        slots=1,
        capacity=past + 16 * _STEPS,
        costs=cost_table(((0, flat),)),
        calibration=CalibrationTable(),
        pairs=pair_tables(pairs),
    )
    ids = np.random.default_rng(0).integers(0, 256, past, np.int32)
    ids[0] = EOD
    seconds, settings = [], settings_of(policy, max_ids=16 * _STEPS)
    for _ in range(repeats + 1):
        left = decoder.begin(0, ids, settings)
        while left:
            left = decoder.prefill(0, 4096)
        decoder.run(steps=1, microseconds=0, logprobs=False)
        begin = now()
        block = decoder.run(steps=_STEPS, microseconds=0, logprobs=False)
        steps = len(block.records)
        seconds.append((now() - begin) / max(1, steps))
        decoder.end(0)
    decoder.close()
    return statistics.median(seconds[1:])


def pair_tables(pairs: PairCorrection | None) -> tuple[Any, Any, Any, Any, Any] | None:
    """A correction as the engine takes it."""
    if pairs is None:
        return None
    last, before, out, of_head, of_pair = (
        np.ascontiguousarray(one, np.float32)
        for one in (pairs.last_VR, pairs.before_VR, pairs.out_RV, pairs.of_head_N, pairs.of_pair_N)
    )
    return last, before, out, of_head, of_pair


def settings_of(policy: int, *, max_ids: int, temperature: float = 0.0, sequence: int = 0) -> SequenceSettings:
    """What is asked of a sequence of a decoder."""
    return SequenceSettings(
        temperature=temperature,
        top_p=-1.0,
        min_p=-1.0,
        repetition_penalty=1.0,
        seed=0,
        sequence=sequence,
        max_ids=max_ids,
        policy=policy,
    )
