"""Measure what drafts cost and what they are worth here, and keep it beside the run: ``decode.json``.

    pairs          a correction of the draft heads by the two bytes before, fitted to held-out bytes (``bytelm.pairs``)
    cost           seconds of a pass by its rows and by the bytes before it, of one more sequence, of the draft heads
    calibration    how often proposals of each kind were right, on held-out bytes, greedy and sampled
    check          bytes per second as predicted from these, against those of another decoding: within 10 %

The plan belongs to weights, dtype, device, threads and versions. A plan of anything else is refused with the reason,
for a wrong cost table is worse than a sensible guess. Plans change speed, never a byte.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import xxhash

from bytelm import __version__
from bytelm.decode import DecodePlan, Request, decode_batch, prior_plan
from bytelm.drafting import Calibration, StepCost
from bytelm.errors import GenerationError
from bytelm.files import refusals_named, write_file
from bytelm.generation import GenerateSettings, Step
from bytelm.layers import JoinedPass
from bytelm.machine import processor_name
from bytelm.model import ROWS_MULTIPLE, ByteLM
from bytelm.pairs import LEAST_BYTES, PATH_OF_PAIRS, PairCorrection, bytes_of_chain, fit_pairs, read_pairs, write_pairs
from bytelm.shipped import own_folder, shipped_model

PATH_OF_PLAN: Final = "decode.json"
_FORMAT: Final = 1
_ROWS: Final = (1, 4, 8, 12, 16, 24, 32, 48)
_SIDE_BY_SIDE: Final = 4
_WINDOW_BYTES: Final = 2048
_JUDGED_WINDOWS: Final = 12
_SAMPLED_AT: Final = 0.8
_TRUSTED: Final = 40.0
"""Proposals of a kind that count at most: what the present text shows must be able to say otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """Predicted and achieved speed on one kind of text.

    Attributes:
        kind: Its name.
        plain: Bytes per second without drafts.
        predicted: With the plan, from its costs and its chances.
        achieved: With the plan, by the clock.
        bytes_per_step: With the plan.
        acceptance: For each source its verified drafts and those that were right; heads by number, ``past``.
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
    model: ByteLM,
    kinds: Mapping[str, Sequence[bytes]],
    *,
    context_bytes: int,
    max_bytes: int = 128,
    repeats: int = 15,
    pairs: PairCorrection | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> Tuning:
    """Measure a model on this machine, with the threads that torch has now.

    Args:
        model: In evaluation mode, on its device, packed if it is going to be.
        kinds: For each kind of text prompts, at least two; half of them calibrate, half check.
        context_bytes: The window that the model was trained with.
        max_bytes: Bytes to generate for each prompt.
        repeats: Passes that are timed for each number of rows.
        pairs: Correction of the draft heads, from ``best_pairs``.
        say: Told what is being measured.

    Raises:
        GenerationError: There are too few prompts.
    """
    if not kinds or any(len(prompts) < 2 for prompts in kinds.values()):
        raise GenerationError("there are too few held-out bytes to tune with; give a larger --file")
    begin = time.perf_counter()
    say("timing passes")
    costs = measure_costs(model, context_bytes=context_bytes, repeats=repeats)
    say("decoding held-out text to calibrate")
    calibration = Calibration()
    first = [prompt for prompts in kinds.values() for prompt in prompts[::2]]
    guess = DecodePlan(costs, calibration, pairs=pairs)
    plain = _decode(model, first, guess, context_bytes, draft="none", max_bytes=max_bytes)
    guess = replace(guess, costs=_with_overhead(costs, plain))
    drafted = _decode(model, first, guess, context_bytes, draft="adaptive", max_bytes=max_bytes)
    guess = replace(guess, costs=_with_heads(guess.costs, drafted))
    sampled = _decode(
        model, first, guess, context_bytes, draft="adaptive", max_bytes=max_bytes // 2, temperature=_SAMPLED_AT
    )
    plan = replace(guess, calibration=_merged(drafted.calibration, sampled.calibration))
    checks = []
    for kind, prompts in kinds.items():
        say(f"checking on {kind}")
        without, within = _Decoded(), _Decoded(calibration=Calibration(dict(plan.calibration.counts)))
        for prompt in prompts[1::2]:  # in turn, so that a neighbour on the machine slows both
            _decode(model, [prompt], plan, context_bytes, without, draft="none", max_bytes=max_bytes)
            _decode(model, [prompt], plan, context_bytes, within, draft="adaptive", max_bytes=max_bytes)
        checks.append(_checked(kind, without, within, plan))
    return Tuning(plan=plan, checks=tuple(checks), elapsed_s=time.perf_counter() - begin)


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
    model: ByteLM, texts: Mapping[str, bytes], *, context_bytes: int, known: PairCorrection | None = None
) -> FittedPairs | None:
    """Fit a correction to four fifths of each text, and keep the best of what there is on the rest.

    Args:
        model: As ``tune`` takes it.
        texts: Held-out bytes by kind.
        context_bytes: Window of the model.
        known: One that was fitted before, also to other text.

    Returns:
        None where there is too little text to say, or nothing to correct.
    """
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


@torch.inference_mode()
def measure_costs(model: ByteLM, *, context_bytes: int, repeats: int) -> tuple[tuple[int, StepCost], ...]:
    """Seconds of a pass and of the draft heads, by rows, for a few lengths of what is before it."""
    found = []
    room = max(_ROWS) + 1
    for past in sorted({min(past, max(1, context_bytes - room)) for past in (128, 1024, 4096)}):
        caches = [model.new_cache(1, past + room) for _ in range(_SIDE_BY_SIDE)]
        ids = torch.randint(0, 256, (1, past), device=model.embedding.device)
        for cache in caches:
            model.prefill(ids, cache)
        rows = [rows for rows in _ROWS if rows <= context_bytes]
        seconds = [_quartile(partial(_pass, model, caches[:1], count), repeats) for count in rows]
        side_by_side = _quartile(partial(_pass, model, caches, ROWS_MULTIPLE), repeats)
        together = float(np.interp(_SIDE_BY_SIDE * ROWS_MULTIPLE, rows, seconds))
        more = max(0.0, side_by_side - together) / (_SIDE_BY_SIDE - 1)
        heads = _quartile(partial(_pass, model, caches[:1], ROWS_MULTIPLE, drafting=True), repeats)
        heads = max(0.0, heads - float(np.interp(ROWS_MULTIPLE, rows, seconds)))
        # A pass with more rows is never cheaper: what looks so is noise, and would mislead the planner.
        rising = np.maximum.accumulate(seconds).tolist()
        found.append((past, StepCost(tuple(rows), tuple(rising), heads, more)))
    return tuple(found)


def _pass(model: ByteLM, caches: Sequence[Any], rows: int, *, drafting: bool = False) -> None:
    passes = [model.cached_pass(cache, rows) for cache in caches]
    shared = passes[0] if len(passes) == 1 else JoinedPass.build(passes)
    inputs = torch.zeros(1, rows * len(caches), dtype=torch.int64, device=model.embedding.device)
    hidden = model.decode(inputs, shared)
    model.heads.decode_logits(hidden, shared, range(1)).float().cpu()
    if drafting and model.heads.count > 1:
        model.heads.decode_logits(hidden, shared, range(1, model.heads.count), rows=[0]).float().cpu()


def _quartile(run: Callable[[], None], repeats: int) -> float:
    clock = _clock()
    run()
    seconds = []
    for _ in range(repeats):
        begin = clock()
        run()
        seconds.append(clock() - begin)
    return float(np.quantile(seconds, 0.25))


def _clock() -> Callable[[], float]:
    """Processor time where one thread does all the work: neighbours do not count. Else the time on the wall."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time if alone else time.perf_counter


@dataclass(slots=True)
class _Decoded:
    """Prompts that were continued one by one.

    Attributes:
        steps: Of all, with the bytes before each and its seconds.
        bytes: Generated.
        seconds: Of the steps.
        calibration: What became of the drafts.
    """

    steps: list[tuple[int, Step, float]] = field(default_factory=list)
    bytes: int = 0
    seconds: float = 0.0
    calibration: Calibration = field(default_factory=Calibration)


def _decode(
    model: ByteLM,
    prompts: Sequence[bytes],
    plan: DecodePlan,
    context_bytes: int,
    done: _Decoded | None = None,
    **settings: Any,
) -> _Decoded:
    """Continue prompts one by one, and add what they gave to what is there."""
    clock = _clock()
    done = _Decoded(calibration=Calibration(dict(plan.calibration.counts))) if done is None else done
    for sequence, prompt in enumerate(prompts):
        asked = Request(prompt, GenerateSettings(sequence=sequence, **settings))
        within = replace(plan, calibration=done.calibration, shared=True)
        begin: float | None = None
        past = len(prompt)
        for _, step in decode_batch(model, [asked], context_bytes=context_bytes, slots=1, tuned=within):
            now = clock()
            if begin is not None:  # the first step holds the prefill
                done.steps.append((min(past, context_bytes), step, now - begin))
                done.bytes += step.accepted + 1
                done.seconds += now - begin
            past += step.accepted + 1
            begin = now
    return done


def _table_seconds(costs: tuple[tuple[int, StepCost], ...], past: int, step: Step) -> float:
    cost = DecodePlan(costs, Calibration()).cost_at(past)
    return cost.of(step.rows) + (cost.heads if step.asked else 0.0)


def _with_overhead(costs: tuple[tuple[int, StepCost], ...], plain: _Decoded) -> tuple[tuple[int, StepCost], ...]:
    """What a plain step takes beyond its pass is paid by every step."""
    if not plain.steps:
        return costs
    beyond = [seconds - _table_seconds(costs, past, step) for past, step, seconds in plain.steps]
    more = float(np.median(beyond))
    return tuple(
        (past, StepCost(cost.rows, tuple(max(1e-6, one + more) for one in cost.cost), cost.heads, cost.sequence))
        for past, cost in costs
    )


def _with_heads(costs: tuple[tuple[int, StepCost], ...], drafted: _Decoded) -> tuple[tuple[int, StepCost], ...]:
    """Drafting takes more than its product: candidates are weighed. Measured where it is really done."""
    beyond = [seconds - _table_seconds(costs, past, step) for past, step, seconds in drafted.steps if step.asked]
    if not beyond:
        return costs
    more = float(np.median(beyond))
    return tuple(
        (past, StepCost(cost.rows, cost.cost, max(0.0, cost.heads + more), cost.sequence)) for past, cost in costs
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
    for _, step, _ in within.steps:
        for place, source in enumerate(step.drafted):
            name = {-1: "past", -2: "branch"}.get(source, str(source))
            proposed, accepted = acceptance.get(name, (0, 0))
            acceptance[name] = proposed + 1, accepted + (place < step.accepted)
    # The machine may be faster or slower now than when its passes were timed: plain decoding beside tells by how much.
    drift = without.seconds / max(1e-9, sum(_table_seconds(plan.costs, past, step) for past, step, _ in without.steps))
    seconds = drift * sum(_table_seconds(plan.costs, past, step) for past, step, _ in within.steps)
    expected = sum(step.expected for _, step, _ in within.steps)
    return Checked(
        kind=kind,
        plain=without.bytes / max(without.seconds, 1e-9),
        predicted=expected / max(seconds, 1e-9),
        achieved=within.bytes / max(within.seconds, 1e-9),
        bytes_per_step=within.bytes / max(1, len(within.steps)),
        acceptance=acceptance,
    )


# On disk


def key_of(model: ByteLM) -> dict[str, str]:
    """What a plan belongs to."""
    digest = xxhash.xxh3_128()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().contiguous().cpu().view(torch.uint8).numpy().reshape(-1))
    device = model.embedding.device
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "weights": digest.hexdigest(),
        "dtype": "int8" if model.int8 else str(model.embedding.dtype).removeprefix("torch."),
        "device": place,
        "threads": str(torch.get_num_threads()) if device.type == "cpu" else "",
        "torch": torch.__version__,
        "bytelm": __version__,
    }


def write_plan(folder: Path, plan: DecodePlan, model: ByteLM) -> Path:
    """Write ``decode.json`` into the folder of a run, and the correction of the heads beside it."""
    value = {
        "format": _FORMAT,
        "key": key_of(model),
        "costs": [
            {"past": past, "rows": cost.rows, "seconds": cost.cost, "heads": cost.heads, "sequence": cost.sequence}
            for past, cost in plan.costs
        ],
        "calibration": plan.calibration.counts,
    }
    path = folder / PATH_OF_PLAN
    with refusals_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(value, indent=1).encode())
    if plan.pairs is not None:
        write_pairs(folder, plan.pairs, value["key"]["weights"])
    return path


def read_plan(folder: Path, model: ByteLM) -> tuple[DecodePlan | None, str]:
    """The plan of a run, if it is there and belongs to this model on this machine.

    Args:
        folder: Of the run.
        model: As it is going to decode.

    Returns:
        The plan and "", or None and why a plan that is there is refused ("" where there is none). Where only its
        costs are of another machine, a plan of guesses with what is known of the weights, and why.
    """
    if not (folder / PATH_OF_PLAN).is_file() and not (folder / PATH_OF_PAIRS).is_file():
        return None, ""
    key = key_of(model)
    pairs, why_pairs = read_pairs(folder, key["weights"], model.heads.count - 1)
    plan, stale, why = _read_costs(folder / PATH_OF_PLAN, key)
    if plan is not None and not stale:
        return replace(plan, pairs=pairs), why_pairs
    # What drafts are worth belongs to the weights; only what steps cost belongs to the machine.
    worth = plan.calibration if plan is not None and not stale & {"weights", "dtype"} else None
    if pairs is None and worth is None:
        return None, why or why_pairs
    return prior_plan(model, pairs, worth), why or why_pairs


def _read_costs(path: Path, key: Mapping[str, str]) -> tuple[DecodePlan | None, set[str], str]:
    """The plan in a file, which parts of its key are stale, and why it is not to be used as it is."""
    try:
        value = json.loads(path.read_bytes())
        if value["format"] != _FORMAT:
            return None, set(), f"{path} has format {value['format']}, not {_FORMAT}; run bytelm tune again"
        stale = [name for name in key if value["key"].get(name) != key[name]]
        costs = tuple(
            (
                int(one["past"]),
                StepCost(tuple(one["rows"]), tuple(one["seconds"]), float(one["heads"]), float(one["sequence"])),
            )
            for one in value["costs"]
        )
        counts = {kind: (float(right), float(total)) for kind, (right, total) in value["calibration"].items()}
        why = f"{path} was measured with other {', '.join(stale)} and is not used; run bytelm tune again"
        return DecodePlan(costs, Calibration(counts)), set(stale), why if stale else ""
    except FileNotFoundError:
        return None, set(), ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, set(), f"{path} cannot be read ({error!r}) and is not used; run bytelm tune again"


def run_folder(path: Path) -> Path:
    """The folder that a model's plan is written into.

    That of the run that a path names, which may be the path of one of its checkpoints; for a model that ships with
    bytelm one in the user's cache.
    """
    if (shipped := shipped_model(path)) is not None:
        return own_folder(shipped.name)
    return path.parent.parent if path.parent.name == "checkpoints" else path


def find_plan(path: Path, model: ByteLM) -> tuple[DecodePlan | None, str]:
    """What is known of a model: ``read_plan`` of its folder, and for a shipped model of what came with it.

    Args:
        path: As ``load`` takes it.
        model: As it is going to decode.
    """
    plan, why = read_plan(run_folder(path), model)
    if plan is None and (shipped := shipped_model(path)) is not None:
        plan, _ = read_plan(shipped, model)  # that its costs are of another machine is nobody's fault
    return plan, why
