"""Decoding through the engine: requests take slots of a decoder, blocks of steps become ``Step`` records.

The engine drafts, verifies and accepts by itself. Here is what Python knows better: requests come one by one, stop
strings end an output, Ctrl-C must be answered. A block is some 16 steps or 20 ms; what a stop string cuts off of it is
dropped. What a decoder has read stays in its caches, and prompts that begin alike are read once.
"""

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from bytelm.decoding.plan import DecodePlan, Request
from bytelm.drafting import Calibration, StepCost
from bytelm.engine import (
    LOGITS_NOT_FINITE,
    MOST_PASTS,
    MOST_ROW_COUNTS,
    MOST_SLOTS,
    NOT_FINITE,
    Block,
    CalibrationTable,
    CostTable,
    Counter,
    Decoder,
    Engine,
    Floats,
    SequenceSettings,
)
from bytelm.errors import GenerationError
from bytelm.generation import FinishReason, GenerateSettings, Step
from bytelm.outlet import OutputBuffer
from bytelm.pair_correction import PairCorrection
from bytelm.vocab import BYTES, EOD

T = TypeVar("T")

_BLOCK_STEPS: Final = 16
_BLOCK_MICROSECONDS: Final = 20_000
_PIECE_S: Final = 0.05
"""Of reading a prompt, after which Ctrl-C is answered."""
_PIECE_IDS: Final = (16, 4096)
_MOST_IDS: Final = 1 << 62
_MOST_TOP_K: Final = (1 << 31) - 1

_POLICIES: Final = {"none": 0, "adaptive": 1, "heads": 2, "ngram": 3}
_FINISHES: Final[tuple[FinishReason | None, ...]] = (None, "end_of_document", "max_bytes")
_RULES: Final = ("", "drawn ")
_MATCHES: Final = (4, 6, 8, 12, 16, 24, 32, 64)

_ROWS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_PASTS: Final = (64, 512, 2048, 8192)
_CACHED_BYTES: Final = 16 << 20
"""Matrices that fit the caches of a processor."""
_CACHED_BYTES_PER_S, _MEMORY_BYTES_PER_S = 40e9, 10e9
_FLOPS_PER_S: Final = {"float32": 60e9, "bfloat16": 60e9, "int8": 120e9}
_BYTES_OF_WEIGHT: Final = {"float32": 4, "bfloat16": 2, "int8": 1}
_STEP_S: Final = 5e-6
"""Of a step, beside its pass: choices and what is drafted."""
_HEAD_S: Final = 2e-6
"""Of a draft head, beside its product."""


def decode_batch(
    engine: Engine, requests: Iterable[Request], *, context_bytes: int, slots: int, tuned: DecodePlan | None
) -> Iterator[tuple[int, Step]]:
    """Continue many prompts side by side; see ``bytelm.decode.decode_batch``."""
    arriving = _checked(engine, requests)
    if (first := next(arriving, None)) is None:
        return
    plan = prior_plan(engine) if tuned is None else tuned
    slots, capacity = min(slots, MOST_SLOTS), max(2, engine.config.ids_for(context_bytes))
    pairs = plan.pairs if engine.vocabulary is BYTES and engine.head_count > 1 else None
    costs, calibration = cost_table(plan.costs), calibration_table(plan.calibration)
    key = (slots, capacity, pairs)
    decoder = engine.spare.take(
        key,
        lambda: Decoder(
            engine, slots=slots, capacity=capacity, costs=costs, calibration=calibration, pairs=_tables(pairs)
        ),
    )
    try:
        decoder.set_costs(costs)
        decoder.set_calibration(calibration)
        yield from _decode(decoder, itertools.chain([first], arriving))
    finally:
        for slot in range(slots):
            decoder.end(slot)
        if plan.shared:
            plan.calibration.counts.update(observed(decoder.calibration()))
        engine.spare.give_back(key, decoder)


@dataclass(slots=True, eq=False)
class _Sequence:
    """One prompt on its way.

    Attributes:
        index: Number of its request.
        settings: Of its request.
        output: Looks for stop strings, and turns ids into bytes where they are none; None where neither is needed.
        of_bytes: Whether ids are bytes.
        finished: Whether its last step is done.
    """

    index: int
    settings: GenerateSettings
    output: OutputBuffer | None
    of_bytes: bool
    finished: bool = False


def _decode(decoder: Decoder, arriving: Iterator[tuple[int, Request]]) -> Iterator[tuple[int, Step]]:
    running: list[_Sequence | None] = [None] * decoder.slots
    while True:
        for slot, sequence in enumerate(running):
            if sequence is None or sequence.finished:
                if sequence is not None:
                    decoder.end(slot)
                following = next(arriving, None)
                running[slot] = None if following is None else _begin(decoder, slot, *following)
        present = [sequence for sequence in running if sequence is not None]
        if not present:
            return
        block = decoder.run(
            steps=_BLOCK_STEPS,
            microseconds=_BLOCK_MICROSECONDS,
            logprobs=any(sequence.settings.logprobs for sequence in present),
        )
        yield from _steps(block, running)


def _begin(decoder: Decoder, slot: int, index: int, request: Request) -> _Sequence:
    """Give a slot to a request and read its prompt, in pieces that are short enough for Ctrl-C."""
    settings, vocabulary = request.settings, decoder.engine.vocabulary
    encoded = np.frombuffer(request.prompt, np.uint8) if vocabulary is BYTES else vocabulary.encode(request.prompt)
    ids = np.empty(1 + len(encoded), np.int32)
    ids[0], ids[1:] = EOD, encoded
    left = decoder.begin(slot, ids, _struct(settings))
    piece = 64
    while left:
        begin_s = time.perf_counter()
        left = decoder.prefill(slot, piece)
        seconds = max(time.perf_counter() - begin_s, 1e-6)
        piece = int(min(max(piece * _PIECE_S / seconds, _PIECE_IDS[0]), 2 * piece, _PIECE_IDS[1]))
    of_bytes = vocabulary is BYTES
    needed = bool(settings.stop) or not of_bytes
    output = OutputBuffer(settings.max_bytes, settings.stop, vocabulary) if needed else None
    return _Sequence(index, settings, output, of_bytes)


def _steps(block: Block, running: list[_Sequence | None]) -> Iterator[tuple[int, Step]]:
    """The records of a block as steps. What stands behind a stop string is dropped."""
    ids, sources, logprobs, drafted = block.ids, block.sources, block.logprobs, block.drafted
    data = ids.astype(np.uint8).tobytes()  # where ids are bytes
    for slot, first, count, drafted_first, drafts, accepted, rows, asked, finish, expected in block.records:
        sequence = running[slot]
        if sequence is None or sequence.finished:
            continue
        if finish == LOGITS_NOT_FINITE:
            raise GenerationError(NOT_FINITE)
        end = first + count
        own = (
            data[first:end],
            tuple(sources[first:end]),
            tuple(logprobs[first:end]) if sequence.settings.logprobs else (),
        )
        reason = _FINISHES[finish]
        output = sequence.output
        if output is not None:
            whole = own[0] if sequence.of_bytes else ids[first:end].tolist()
            reason = output.push(whole, own[1], own[2]) or reason
            own = output.pop_safe(last=reason is not None)
        sequence.finished = reason is not None
        step = Step(
            *own, tuple(drafted[drafted_first : drafted_first + drafts]), accepted, rows, expected, asked, reason
        )
        yield sequence.index, step


def _checked(engine: Engine, requests: Iterable[Request]) -> Iterator[tuple[int, Request]]:
    """The requests with their numbers; those for no byte are left out."""
    for index, request in enumerate(requests):
        settings = request.settings
        if engine.vocabulary is not BYTES:
            asked = (settings.utf8, settings.repetition_penalty != 1.0, settings.logprobs, settings.draft == "ngram")
            for name, wants_bytes in zip(("utf8", "repetition_penalty", "logprobs", "draft"), asked, strict=True):
                if wants_bytes:
                    raise GenerationError(
                        f"{name} = {getattr(settings, name)!r} looks at bytes, and ids of {engine.vocabulary.name} "
                        "stand for several; leave it out"
                    )
        if settings.max_bytes > 0:
            yield index, request


def _struct(settings: GenerateSettings) -> SequenceSettings:
    return SequenceSettings(
        temperature=settings.temperature,
        top_p=-1.0 if settings.top_p is None else settings.top_p,
        min_p=-1.0 if settings.min_p is None else settings.min_p,
        repetition_penalty=settings.repetition_penalty,
        seed=settings.seed,
        sequence=settings.sequence,
        max_ids=min(settings.max_bytes, _MOST_IDS),  # an id is one byte at least
        top_k=0 if settings.top_k is None else min(settings.top_k, _MOST_TOP_K),
        utf8=settings.utf8,
        logprobs=settings.logprobs,
        policy=_POLICIES[settings.draft],
    )


# Plans --------------------------------------------------------------------------------------------------------------


def _tables(pairs: PairCorrection | None) -> tuple[Floats, Floats, Floats, Floats, Floats] | None:
    if pairs is None:
        return None
    last, before, out, of_head, of_pair = (
        np.ascontiguousarray(table, np.float32)
        for table in (pairs.last_VR, pairs.before_VR, pairs.out_RV, pairs.of_head_N, pairs.of_pair_N)
    )
    return last, before, out, of_head, of_pair


def cost_table(costs: tuple[tuple[int, StepCost], ...]) -> CostTable:
    """Costs as the engine takes them: at most four pasts and twelve numbers of rows, the same ones for all pasts."""
    costs = tuple(sorted(_some(costs, MOST_PASTS), key=lambda one: one[0]))
    rows = _some(sorted({rows for _, cost in costs for rows in cost.rows}), MOST_ROW_COUNTS)
    table = CostTable(pasts=len(costs), row_counts=len(rows))
    table.rows[: len(rows)] = rows
    for place, (past, cost) in enumerate(costs):
        table.past[place] = past
        table.seconds[place][: len(rows)] = [max(cost.of(count), 1e-9) for count in rows]
    table.head = float(np.mean([cost.head for _, cost in costs]))
    table.sequence = float(np.mean([cost.sequence for _, cost in costs]))
    return table


def _some(values: Sequence[T], most: int) -> Sequence[T]:
    """Some values, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]


def calibration_table(calibration: Calibration) -> CalibrationTable:
    """A calibration as the engine takes it; kinds that it does not know are left out."""
    table = CalibrationTable()
    for kind, (right, total) in calibration.counts.items():
        counter = _counter(table, kind)
        if counter is not None and 0.0 <= right <= total:
            counter.right, counter.total = right, total
    return table


def _counter(table: CalibrationTable, kind: str) -> Counter | None:
    drawn, words = kind.startswith(_RULES[1]), kind.removeprefix(_RULES[1]).split()
    if len(words) == 3 and words[0] in ("head", "agree"):
        depth, bin_ = int(words[1]), int(words[2])
        return table.head[drawn][words[0] == "agree"][depth][bin_] if depth < 9 and bin_ < 13 else None
    if len(words) == 2 and words[0] in ("past", "against") and int(words[1]) in _MATCHES:
        counters = table.lookup if words[0] == "past" else table.against
        return counters[drawn][_MATCHES.index(int(words[1]))]
    return None


def observed(table: CalibrationTable) -> dict[str, tuple[float, float]]:
    """The counts of a table, by kind; kinds that nothing was seen of are left out."""
    numbers = np.frombuffer(memoryview(table).cast("B"), np.float64)
    head_RADBN = numbers[: 2 * 2 * 9 * 13 * 2].reshape(2, 2, 9, 13, 2)
    lookup_ARBN = numbers[2 * 2 * 9 * 13 * 2 :].reshape(2, 2, 8, 2)
    found = {}
    for rule, agree, depth, bin_ in np.argwhere(head_RADBN[..., 1] > 0).tolist():
        name = f"{_RULES[rule]}{('head', 'agree')[agree]} {depth} {bin_}"
        found[name] = tuple(head_RADBN[rule, agree, depth, bin_].tolist())
    for against, rule, bin_ in np.argwhere(lookup_ARBN[..., 1] > 0).tolist():
        name = f"{_RULES[rule]}{('past', 'against')[against]} {_MATCHES[bin_]}"
        found[name] = tuple(lookup_ARBN[against, rule, bin_].tolist())
    return found


def prior_plan(
    engine: Engine, pairs: PairCorrection | None = None, calibration: Calibration | None = None
) -> DecodePlan:
    """Guesses of what steps cost, for a model that was not timed here.

    Args:
        engine: To be decoded.
        pairs: Correction of its heads, which belongs to its weights alone.
        calibration: Of its drafts, which does too.
    """
    return DecodePlan(prior_costs(engine), calibration or Calibration(), pairs)


def prior_costs(engine: Engine) -> tuple[tuple[int, StepCost], ...]:
    """Costs from the shape alone: bytes of weights over bandwidth, or operations over speed where that is more.

    The planner compares rows with passes, so that ratios count: they say that drafts pay where memory is the limit, and
    hardly where matrices lie in the processor's caches, and there they must be right to be worth it.
    """
    config, heads = engine.config, engine.heads
    width, channels = config.d_model, config.head_channels
    block = width * ((config.attention_heads + 2 * config.kv_heads) * channels + width + 3 * config.d_ff)
    attends = heads.family not in ("linear", "mlp")
    of_family = width * width if heads.family == "mlp" else block if attends else 0
    unembedding = width * config.vocabulary_size
    blocks_of_head0 = heads.count if heads.family == "anticausal" else int(attends)
    weights = engine.layers * block + len(config.ngram_sizes) * config.ngram_width * width + unembedding
    weights += blocks_of_head0 * block if attends else of_family
    # What is read: a shared block once, the blocks of anticausal heads all.
    each = _BYTES_OF_WEIGHT[engine.kind]
    bandwidth = _CACHED_BYTES_PER_S if engine.matrix_bytes <= _CACHED_BYTES else _MEMORY_BYTES_PER_S
    flops = _FLOPS_PER_S[engine.kind]
    read_s, row_s = weights * each / bandwidth, 2 * weights / flops
    # A head that attends also reads the rows that were accepted since it was asked.
    head_weights = unembedding + (0 if heads.family == "anticausal" else 2 * of_family if attends else of_family)
    head_s = max(head_weights * each / bandwidth, 2 * head_weights / flops) + _HEAD_S
    found = []
    for past in _PASTS:
        seen = sum(
            min(past, config.local_window_ids) if config.attention_kind(layer) == "local" else past
            for layer in range(engine.layers)
        )
        seen += blocks_of_head0 * past
        attention_s = 4 * width * seen / _FLOPS_PER_S["float32"]
        keys_s = 8 * config.kv_heads * channels * seen / bandwidth
        seconds = tuple(_STEP_S + max(read_s, rows * row_s) + max(keys_s, rows * attention_s) for rows in _ROWS)
        found.append((past, StepCost(_ROWS, seconds, head_s, keys_s)))
    return tuple(found)
