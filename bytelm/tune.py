"""Measure what drafts cost and what they are worth here, for the plan that is kept beside the run (``bytelm.plans``).

    pairs          a correction of the draft heads by the two bytes before, fitted to held-out bytes (``bytelm.pairs``)
    cost           seconds of a step by its rows and by the bytes before it, of a draft head, of one more sequence;
                   corrected by what the steps of the plan that follows from it really take
    calibration    how often drafts of each kind were right, on held-out bytes, greedy and sampled
    check          bytes per second as predicted from these, against those of another decoding: within 10 %

Whatever decodes is measured: the engine, or torch. Passes are timed by themselves (``bytelm.decoding.costs``); what a
step takes besides is timed where users wait for it, in ``decode_batch``, so that choices, drafts and Python's part are
inside, each once. Only fitting pairs needs torch where the engine decodes.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bytelm.decode import DecodePlan, Request, decode_batch
from bytelm.decoding.costs import SIDE_BY_SIDE, PassTimer, clock_of, lower_quartile
from bytelm.drafting import LOOKUP, Calibration, StepCost
from bytelm.engine import Engine
from bytelm.errors import GenerationError
from bytelm.generation import GenerateSettings, Step
from bytelm.pair_correction import PairCorrection

if TYPE_CHECKING:
    from bytelm.model import ByteLM

Costs = tuple[tuple[int, StepCost], ...]

_DEEP: Final = StepCost((1, 48), (1.0, 1.1), 1e-3)
"""Rows and heads that cost next to nothing: everything is drafted, so that everything is counted."""
_WINDOW_BYTES: Final = 2048
_JUDGED_WINDOWS: Final = 12
_SAMPLED_AT: Final = 0.8
_TRUSTED: Final = 40.0
"""Drafts of a kind that count at most: what the present text shows must be able to say otherwise."""
_TIMED_BYTES: Final = 24
"""Bytes of each continuation that tells costs: about as short as a pass, so that other work disturbs both alike."""
_PLANNED_PROMPTS: Final = 24
"""Prompts at most whose planned steps are timed."""
_ROUNDS_S: Final = 30.0
"""Seconds that passes and steps are timed, about; slow models have fewer rounds."""
_FEWEST_ROUNDS: Final = 3
_LEAST_S: Final = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """Predicted and achieved speed on one kind of text.

    Attributes:
        kind: Its name.
        plain: Bytes per second without drafts.
        predicted: With the plan, from its costs and from the bytes that the planner expected of each step.
        achieved: With the plan, by the clock.
        bytes_per_step: With the plan.
        acceptance: For each source its verified drafts and those that were right; heads by number, ``lookup``.
    """

    kind: str
    plain: float
    predicted: float
    achieved: float
    bytes_per_step: float
    acceptance: dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """All that was measured.

    Attributes:
        plan: For the decoder.
        checks: For each kind of text.
        elapsed_s: That it took.
    """

    plan: DecodePlan
    checks: tuple[Checked, ...]
    elapsed_s: float


def tune(
    model: "ByteLM | Engine",
    kinds: Mapping[str, Sequence[bytes]],
    *,
    context_bytes: int,
    max_bytes: int = 128,
    repeats: int = 15,
    pairs: PairCorrection | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> Tuning:
    """Measure a model on this machine, with the threads that it has.

    Args:
        model: An engine, or a torch model in evaluation mode, on its device.
        kinds: For each kind of text prompts, at least two; half of them calibrate, half check.
        context_bytes: The window that the model was trained with.
        max_bytes: Bytes to generate for each prompt.
        repeats: Times that each pass is timed, at most.
        pairs: Correction of the draft heads, from ``best_pairs``.
        say: Told what is being measured.

    Raises:
        GenerationError: There are too few prompts, or the model's logits are not finite.
    """
    if not kinds or any(len(prompts) < 2 for prompts in kinds.values()):
        raise GenerationError("there are too few held-out bytes to tune with; give a larger --file")
    begin_s = time.perf_counter()
    # In turn, for what was counted first fades.
    first = [*_in_turn(prompts[::2] for prompts in kinds.values())]
    run = _Run(model, context_bytes)
    say("timing passes and steps")
    costs, beyond = _step_costs(run, first, repeats, pairs)
    say("decoding held-out text to calibrate")
    deep = DecodePlan(((0, _DEEP),), Calibration(), pairs)
    counted = [_Decoded.after(deep) for _ in range(2)]
    for prompt in first:
        for done, temperature in zip(counted, (0.0, _SAMPLED_AT), strict=True):
            run.add(done, [prompt], deep, max_bytes=max_bytes, draft="adaptive", temperature=temperature)
    calibration = _merged(*(done.calibration for done in counted))
    say("timing steps as they are planned")
    plan = DecodePlan(_more(costs, row=beyond[0], head=beyond[1]), calibration, pairs)
    plan = replace(plan, costs=_costs_as_planned(run, first, plan, costs, beyond, max_bytes=max_bytes))
    checks = []
    for kind, prompts in kinds.items():
        say(f"checking on {kind}")
        without, within = _Decoded.after(plan), _Decoded.after(plan)
        for prompt in prompts[1::2]:  # in turn, so that a neighbour on the machine slows both
            run.add(without, [prompt], plan, max_bytes=max_bytes, draft="none")
            run.add(within, [prompt], plan, max_bytes=max_bytes, draft="adaptive")
        checks.append(_checked(kind, without, within, plan))
    return Tuning(plan=plan, checks=tuple(checks), elapsed_s=time.perf_counter() - begin_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedPairs:
    """A correction of the draft heads, and what it is worth on text that it was not fitted to.

    Attributes:
        pairs: The best there is: the new one, the one before, or None for the heads alone.
        without: Bytes of a step if all heads are drafted, without a correction.
        within: With ``pairs``.
    """

    pairs: PairCorrection | None
    without: float
    within: float


def best_pairs(
    model: "ByteLM", texts: Mapping[str, bytes], *, context_bytes: int, known: PairCorrection | None = None
) -> FittedPairs | None:
    """Fit a correction to four fifths of each text, and keep the best of what there is on the rest.

    Args:
        model: In evaluation mode, on its device.
        texts: Held-out bytes by kind.
        context_bytes: Window of the model.
        known: One that was fitted before, also to other text.

    Returns:
        None where there is too little text to say, or nothing to correct.
    """
    from bytelm.pairs import LEAST_BYTES, bytes_of_chain, fit_pairs

    parts = {kind: len(text) * 4 // 5 for kind, text in texts.items()}
    window = min(context_bytes, _WINDOW_BYTES)
    judged = [
        text[place : place + window]
        for kind, text in texts.items()
        for place in range(parts[kind], len(text) - 2 * model.heads.count, window)
    ]
    if model.heads.count < 2 or not judged or sum(map(len, texts.values())) < LEAST_BYTES:
        return None
    new = fit_pairs(model, {kind: text[: parts[kind]] for kind, text in texts.items()}, context_bytes=window)
    judged = judged[:: -(-len(judged) // _JUDGED_WINDOWS)]
    without = bytes_of_chain(model, judged, None, context_bytes=window)
    found = [(without, None)]
    found += [
        (bytes_of_chain(model, judged, one, context_bytes=window), one) for one in (known, new) if one is not None
    ]
    within, pairs = max(found, key=lambda one: one[0])
    return FittedPairs(pairs=pairs, without=without, within=within)


# Decoding with a watch ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Timed:
    """Prompts that were continued side by side; what their first steps took, prefill among it, is left out.

    Attributes:
        steps: The steps of each prompt, each with the number of bytes before it.
        opening: The same of a continuation by one byte, whose time was subtracted.
        seconds: The time.
    """

    steps: list[list[tuple[int, Step]]]
    opening: list[list[tuple[int, Step]]]
    seconds: float

    def sum(self, value: Callable[[Step], float]) -> float:
        """Of all steps that were timed, what is made of each."""
        whole, opening = (sum(value(step) for one in steps for _, step in one) for steps in (self.steps, self.opening))
        return whole - opening

    def table_seconds(self, costs: Costs) -> float:
        """What a table says that it takes, a straight line between its numbers of bytes before."""
        found = 0.0
        for sign, steps in ((1, self.steps), (-1, self.opening)):
            for side_by_side in zip_longest(*steps):
                present = [one for one in side_by_side if one is not None]
                past, rows = max(past for past, _ in present), sum(step.rows for _, step in present)
                seconds = [cost.of(rows, len(present)) for _, cost in costs]
                found += sign * float(np.interp(past, [known for known, _ in costs], seconds))
                found += sign * costs[0][1].head * sum(step.asked for _, step in present)
        return found


@dataclass(slots=True)
class _Decoded:
    """What decoding gave.

    Attributes:
        calibration: What became of the drafts.
        timed: Times, one for each prompt or for each group of prompts side by side.
    """

    calibration: Calibration
    timed: list[_Timed] = field(default_factory=list)

    @classmethod
    def after(cls, plan: DecodePlan) -> "_Decoded":
        """Nothing yet; drafts are counted from where a plan is."""
        return cls(Calibration(dict(plan.calibration.counts)))

    @property
    def seconds(self) -> float:
        return max(sum(one.seconds for one in self.timed), _LEAST_S)

    def sum(self, value: Callable[[Step], float]) -> float:
        return sum(one.sum(value) for one in self.timed)


@dataclass(frozen=True, slots=True)
class _Run:
    """What stays the same over all decoding."""

    model: "ByteLM | Engine"
    context_bytes: int

    def add(
        self, done: _Decoded, prompts: Sequence[bytes], plan: DecodePlan, *, max_bytes: int, **settings: Any
    ) -> None:
        """Continue some prompts side by side, and add what they gave to what is there."""
        plan, first = replace(plan, calibration=done.calibration, shared=True), len(done.timed) * len(prompts)

        def once(most_bytes: int) -> tuple[list[list[tuple[int, Step]]], float]:
            # A context that slides would be read again, which is no step.
            most = [min(most_bytes, max(2, self.context_bytes - len(prompt) - 1)) for prompt in prompts]
            asked = [
                Request(prompt, GenerateSettings(max_bytes=most[place], sequence=first + place, **settings))
                for place, prompt in enumerate(prompts)
            ]
            steps: list[list[Step]] = [[] for _ in asked]
            clock = clock_of(self.model)
            begin = clock()
            for index, step in decode_batch(
                self.model, asked, context_bytes=self.context_bytes, slots=len(asked), tuned=plan
            ):
                steps[index].append(step)
            seconds = clock() - begin
            return [_with_pasts(one, len(prompt)) for one, prompt in zip(steps, prompts, strict=True)], seconds

        once(1)  # the engine keeps what it has read, so that prompts are read outside of what is timed
        opening, opening_s = once(1)
        steps, seconds = once(max_bytes)
        done.timed.append(_Timed(steps, opening, seconds - opening_s))


def _with_pasts(steps: Sequence[Step], past: int) -> list[tuple[int, Step]]:
    found = []
    for step in steps:
        found.append((past, step))
        past += step.accepted + 1
    return found


def _in_turn(lists: Iterable[Sequence[bytes]]) -> Iterable[bytes]:
    return (one for one in chain.from_iterable(zip_longest(*lists)) if one is not None)


# Costs and their check ----------------------------------------------------------------------------------------------


def _step_costs(
    run: _Run, prompts: Sequence[bytes], repeats: int, pairs: PairCorrection | None
) -> tuple[Costs, tuple[float, float]]:
    """Costs of passes, with what every step and every sequence takes besides; and what a row and a head take."""
    timer = PassTimer(run.model, context_bytes=run.context_bytes)
    plan = DecodePlan(((0, _DEEP),), Calibration(), pairs)
    plain, several, *drafted = (_Decoded.after(plan) for _ in range(5))
    begin_s = time.perf_counter()
    for place in range(repeats):
        prompt = prompts[place % len(prompts)]
        timer.round()
        run.add(plain, [prompt], plan, max_bytes=_TIMED_BYTES, draft="none")
        run.add(several, [prompt] * SIDE_BY_SIDE, plan, max_bytes=_TIMED_BYTES, draft="none")
        for done, policy in zip(drafted, ("ngram", "heads", "adaptive"), strict=True):
            run.add(done, [prompt], plan, max_bytes=_TIMED_BYTES, draft=policy)
        if place + 1 >= _FEWEST_ROUNDS and time.perf_counter() - begin_s > _ROUNDS_S:
            break
    costs = timer.costs()
    beyond = [
        (one.seconds - one.table_seconds(costs)) / steps for one in plain.timed if (steps := one.sum(lambda _: 1.0))
    ]
    costs = _more(costs, step=max(0.0, lower_quartile(beyond)) if beyond else 0.0)
    # A round in which plain steps are slower than the table says is a slow one for the others too.
    slow = [_ratio(one.seconds, one.table_seconds(costs)) for one in plain.timed]
    row, head = _beyond(drafted, slow, costs, [lambda step: step.rows - 1, lambda step: step.asked])
    (sequence,) = _beyond([several], slow, costs, [lambda _: (SIDE_BY_SIDE - 1) / SIDE_BY_SIDE])
    return _more(costs, sequence=sequence), (row, head)


def _costs_as_planned(
    run: _Run,
    prompts: Sequence[bytes],
    plan: DecodePlan,
    costs: Costs,
    beyond: tuple[float, float],
    *,
    max_bytes: int,
) -> Costs:
    """The costs of a plan, scaled so that the time of the steps that it plans comes out right.

    Steps with everything drafted tell how a row and a head compare. A plan's own steps draft less, after longer
    texts, and look for drafts between them: those tell how much there is of both, in all.

    Args:
        run: The model that is timed.
        prompts: Prompts to continue; a few are enough.
        plan: A plan with the costs of steps in which everything is drafted.
        costs: Costs of passes, without what a draft takes besides.
        beyond: Seconds that each further row and each head take besides, where everything is drafted.
        max_bytes: Bytes to generate for each prompt.
    """
    row, head = row_to_head(beyond, run.model.heads.count)
    plain, planned = _Decoded.after(plan), _Decoded.after(plan)
    for prompt in prompts[:_PLANNED_PROMPTS]:
        run.add(plain, [prompt], plan, max_bytes=max_bytes, draft="none")
        run.add(planned, [prompt], plan, max_bytes=max_bytes, draft="adaptive")
    by_table = [sum(one.table_seconds(costs) for one in done.timed) for done in (plain, planned)]
    units = planned.sum(lambda step: row * (step.rows - 1) + head * step.asked)
    if min(*by_table, units) <= 0.0:  # nothing was drafted, or the clock is too coarse
        return plan.costs
    # Plain steps beside them tell how fast the machine is now.
    left = planned.seconds * by_table[0] / plain.seconds - by_table[1]
    share = max(0.0, left / units)
    return _more(costs, row=share * row, head=share * head)


def row_to_head(beyond: tuple[float, float], heads: int) -> tuple[float, float]:
    """How the costs of a row and of a head compare: as measured, else equal; a model of one head drafts with none.

    Example:
        >>> row_to_head((2e-6, 1e-6), heads=8), row_to_head((0.0, 0.0), heads=8), row_to_head((0.0, 0.0), heads=1)
        ((2e-06, 1e-06), (1.0, 1.0), (1.0, 0.0))
    """
    return beyond if any(beyond) else (1.0, 1.0 if heads > 1 else 0.0)


def _ratio(seconds: float, by_table: float) -> float:
    """How much slower than a table the machine was; 1 where nothing was timed, and nothing that only noise can make."""
    return min(max(seconds / by_table, 0.5), 4.0) if by_table > 0.0 else 1.0


def _beyond(
    decoded: Sequence[_Decoded], slow: Sequence[float], costs: Costs, units: Sequence[Callable[[Step], float]]
) -> tuple[float, ...]:
    """Seconds that decoding took beyond a table, for each unit of some kinds: least squares, none below 0.

    Args:
        decoded: What each policy made of the prompts.
        slow: For each prompt, how many times slower than the table the machine was.
        costs: The table.
        units: For each kind of unit, the function that counts them in a step.
    """
    counts, beyond = [], []
    for done in decoded:
        for one, factor in zip(done.timed, slow, strict=True):
            counts.append([one.sum(unit) for unit in units])
            beyond.append(one.seconds / factor - one.table_seconds(costs))
    left, found = list(range(len(counts[0]))), np.zeros(len(counts[0]))
    while left:
        values = np.linalg.lstsq(np.array(counts)[:, left], np.array(beyond), rcond=None)[0]
        if values.min() >= 0.0:
            found[left] = values
            break
        del left[int(values.argmin())]
    return tuple(found.tolist())


def _more(costs: Costs, *, step: float = 0.0, row: float = 0.0, head: float = 0.0, sequence: float = 0.0) -> Costs:
    return tuple(
        (
            past,
            StepCost(
                cost.rows,
                tuple(
                    max(_LEAST_S, one + step + row * (rows - 1))
                    for rows, one in zip(cost.rows, cost.seconds, strict=True)
                ),
                cost.head + head,
                cost.sequence + sequence,
            ),
        )
        for past, cost in costs
    )


def _merged(*calibrations: Calibration) -> Calibration:
    counts: dict[str, tuple[float, float]] = {}
    for calibration in calibrations:
        for kind, (right, total) in calibration.counts.items():
            scale = min(1.0, _TRUSTED / total) if total else 0.0
            before = counts.get(kind, (0.0, 0.0))
            counts[kind] = before[0] + right * scale, before[1] + total * scale
    return Calibration(counts)


def _checked(kind: str, without: _Decoded, within: _Decoded, plan: DecodePlan) -> Checked:
    acceptance: dict[str, tuple[int, int]] = {}
    for step in (step for one in within.timed for steps in one.steps for _, step in steps):
        for place, source in enumerate(step.drafted):
            name = "lookup" if source == LOOKUP else str(source)
            verified, right = acceptance.get(name, (0, 0))
            acceptance[name] = verified + 1, right + (place < step.accepted)
    # The machine may be faster or slower now than when its passes were timed: plain decoding beside tells by how much.
    by_table = [max(sum(one.table_seconds(plan.costs) for one in done.timed), _LEAST_S) for done in (without, within)]
    seconds = by_table[1] * without.seconds / by_table[0]
    bytes_of = [done.sum(lambda step: step.accepted + 1) for done in (without, within)]
    return Checked(
        kind=kind,
        plain=bytes_of[0] / without.seconds,
        predicted=within.sum(lambda step: step.expected) / seconds,
        achieved=bytes_of[1] / within.seconds,
        bytes_per_step=bytes_of[1] / max(1.0, within.sum(lambda _: 1.0)),
        acceptance=acceptance,
    )
