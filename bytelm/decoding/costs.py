"""Seconds of a pass by its rows, by what is before it and by sequences side by side, measured on this machine.

These are passes alone, through the engine or through torch. What a step takes besides, ``bytelm.tune`` measures where
steps are really made.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from bytelm.drafting import StepCost
from bytelm.engine import Cache, Engine, Session

if TYPE_CHECKING:
    from bytelm.model import ByteLM

Clock = Callable[[], float]

SIDE_BY_SIDE: Final = 4
"""Sequences by which the cost of one more is measured."""

_ROWS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
_PASTS: Final = (64, 512, 2048)
_LEAST_S: Final = 0.002
"""Of what is timed at once: shorter passes are timed several at a time."""
_MOST_AT_ONCE: Final = 32


def clock_of(model: "ByteLM | Engine") -> Clock:
    """Processor time where one thread does all the work, so that neighbours count little; else the time on the wall."""
    if isinstance(model, Engine):
        return time.process_time if model.threads == 1 else time.perf_counter
    import torch

    alone = model.embedding.device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def lower_quartile(seconds: list[float]) -> float:
    """What a repeat takes that nobody disturbs: the mean would count the neighbours, the least is luck."""
    return float(np.quantile(seconds, 0.25))


class PassTimer:
    """Times passes in rounds in which all shapes take turns: a machine that slows down slows all of them.

    Args:
        model: To be measured, with the threads that it has now.
        context_bytes: The window that it was trained with.

    Raises:
        GenerationError: The model's numbers are not finite, or memory is used up.
    """

    def __init__(self, model: "ByteLM | Engine", *, context_bytes: int) -> None:
        capacity = max(2, model.config.ids_for(context_bytes))
        self._clock = clock_of(model)
        self._rows = [count for count in _ROWS if count <= capacity]
        self._together = max(count for count in self._rows if count <= SIDE_BY_SIDE)
        self._pasts = sorted({min(past, max(1, capacity - self._rows[-1] - 1)) for past in _PASTS})
        self._runs: dict[tuple[int, int, int], Callable[[], object]] = {}
        for past in self._pasts:
            passes: _Passes
            if isinstance(model, Engine):
                passes = _EnginePasses(model, past, self._rows[-1])
            else:
                passes = _TorchPasses(model, past, self._rows[-1])
            for sequences, rows in (*((1, count) for count in self._rows), (self._together, 1)):
                self._runs[past, sequences, rows] = passes.of(sequences, rows)
        self._counts = {name: self._count(run) for name, run in self._runs.items()}
        self._seconds: dict[tuple[int, int, int], list[float]] = {name: [] for name in self._runs}

    def round(self) -> None:
        """Time every shape once."""
        for name, run in self._runs.items():
            count = self._counts[name]
            run()  # the one before it was of another shape, and left other things in the processor's caches
            begin = self._clock()
            for _ in range(count):
                run()
            self._seconds[name].append((self._clock() - begin) / count)

    def costs(self) -> tuple[tuple[int, StepCost], ...]:
        """Costs of passes, head 0 at every row; draft heads are left at nothing."""
        found = []
        for past in self._pasts:
            seconds = [lower_quartile(self._seconds[past, 1, count]) for count in self._rows]
            several = lower_quartile(self._seconds[past, self._together, 1])
            more = max(0.0, several - seconds[self._rows.index(self._together)]) / (self._together - 1)
            # A pass with more rows is never cheaper: what looks so is noise, and would mislead the planner.
            rising = np.maximum.accumulate(seconds).tolist()
            found.append((past, StepCost(tuple(self._rows), tuple(rising), 0.0, more)))
        return tuple(found)

    def _count(self, run: Callable[[], object]) -> int:
        run()
        begin = self._clock()
        run()
        return min(max(1, round(_LEAST_S / max(self._clock() - begin, 1e-6))), _MOST_AT_ONCE)


class _Passes(Protocol):
    """Passes behind the same bytes, again and again."""

    def of(self, sequences: int, rows: int) -> Callable[[], object]:
        """What runs a pass over so many rows of each of so many sequences."""
        ...


class _EnginePasses:
    """Without Python's part of a call, which is a good part of a small model's pass, and no part of a step."""

    def __init__(self, engine: Engine, past: int, rows: int) -> None:
        room = past + rows
        self._session = Session(engine, rows=max(rows, SIDE_BY_SIDE), capacity=room)
        self._caches = [Cache(engine, room) for _ in range(SIDE_BY_SIDE)]
        self._ids = _noise(max(room, SIDE_BY_SIDE))
        for cache in self._caches:
            self._session.prefill(cache, self._ids[:past])
        # Once through the door that checks everything.
        self._logits = self._session.run(self._caches[:1], [rows], self._ids[:rows])
        self._pointers = np.array([cache.pointer for cache in self._caches], np.uintp)
        self._pass = getattr(engine.call, "pass")

    def of(self, sequences: int, rows: int) -> Callable[[], object]:
        counts = np.full(sequences, rows, np.int32)
        assert counts.sum() <= len(self._logits) and sequences <= len(self._caches)
        addresses = [array.ctypes.data for array in (self._pointers, counts, self._ids, self._logits)]
        arguments = (self._session.pointer, sequences, *addresses[:2], None, *addresses[2:])

        def one(_keep: object = counts) -> None:
            assert self._pass(*arguments) == 0

        return one


class _TorchPasses:
    def __init__(self, model: "ByteLM", past: int, rows: int) -> None:
        import torch

        self._model, self._torch = model, torch
        self._cache = model.new_cache(SIDE_BY_SIDE, past + rows)
        self._ids = torch.from_numpy(_noise(max(past, rows, SIDE_BY_SIDE)).astype(np.int64))
        with torch.inference_mode():
            for place in range(SIDE_BY_SIDE):
                model.prefill(self._ids[None, :past].to(model.embedding.device), self._cache, place)

    def of(self, sequences: int, rows: int) -> Callable[[], object]:
        inputs_BM = self._ids[: sequences * rows].view(sequences, rows).to(self._model.embedding.device)

        def one() -> None:
            with self._torch.inference_mode():
                shared = self._model.cached_pass(self._cache, sequences, rows)
                hidden_BMD = self._model.decode(inputs_BM, shared)
                self._model.heads.decode_logits(hidden_BMD, shared, range(1)).float().cpu()

        return one


def _noise(count: int) -> "np.ndarray[tuple[int], np.dtype[np.int32]]":
    return np.random.default_rng(0).integers(0, 256, count, np.int32)
