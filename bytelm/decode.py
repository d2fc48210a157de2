"""From a prompt to bytes: plain decoding, which is the specification, and self-speculative decoding, which equals it.

    prefill   the trunk reads the prompt, all but its last id, into the cache
    verify    one pass of the trunk over the last id and the drafted ones; head 0 chooses the id after each of them
    accept    drafts are kept as far as head 0 chose the same; its first own choice is kept as well
    draft     heads 1 … K - 1, at the last row that was accepted, and the text's own past propose what may come next

A step is one pass: it gives the accepted drafts and one id more. Plain decoding is the same loop with nothing
drafted, so the bytes can only differ if a row of a pass depended on the rows beside it. In the tier ``padded`` it
cannot: rows come in multiples of four, and the keys that a row reads are a function of its position alone, so that
each number is computed by the same operations in the same order. This is tested in float32 and bfloat16 on the CPU;
on other devices all passes have the same number of rows, and equality rests on the device's kernels. The tier ``off``
runs just the rows that it needs: where two logits lie closer than rounding, bytes may differ.

Drafts may be a tree. Its chain is verified as above. A branch is only looked at: where it was right, what the trunk
chose behind it becomes the beginning of the next draft, all but certain, and is verified there in its own place. So
every byte is chosen at a row of a chain, and the cache never holds anything else: what lies behind is overwritten.

Several sequences are decoded side by side, each with its own cache and length: their rows are one batch for the
matrices, and each attends to its own keys. One that ends makes room for the next.

The context is ``context_bytes`` slots. A sequence that has filled them goes on with its last half, read afresh; a
prompt that is longer begins with its last half. What has slid out is forgotten. Where this happens depends on
positions alone, never on drafts.

Shapes: B = 1 batch, T bytes, M rows of a pass, D width, K prediction heads, V vocabulary.

Source:
    Stern et al. 2018, arXiv 1811.03115, section 3: blockwise parallel decoding, verification and the next proposal
    from one pass. Trees: Cai et al. 2024, arXiv 2401.10774, section 2.1.2.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from bytelm.drafting import TRUNK, Calibration, Draft, Drafter, RowRule, StepCost, plan, prior_cost
from bytelm.errors import GenerationError
from bytelm.generation import GenerateSettings, Generation, Step
from bytelm.kv_cache import BUCKET, KVCache
from bytelm.layers import JoinedPass
from bytelm.model import ROWS_MULTIPLE, ByteLM
from bytelm.outlet import Chosen, Outlet
from bytelm.pairs import PairCorrection
from bytelm.rejection import probabilities, verify_block
from bytelm.vocab import BYTES, EOD

_PACE_DECAY: Final = 0.95


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and what is asked for it."""

    prompt: bytes
    settings: GenerateSettings


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """What was measured of a model on a machine; without it, sensible guesses take its place.

    Attributes:
        costs: Of a step, for some numbers of bytes before it, ascending.
        calibration: What became of drafts on held-out bytes.
        shared: Whether this very calibration is to go on counting; otherwise each decoding begins with a copy.
        pairs: Correction of the draft heads by the bytes that were drafted before; None for none.
    """

    costs: tuple[tuple[int, StepCost], ...]
    calibration: Calibration
    shared: bool = False
    pairs: PairCorrection | None = None

    def cost_at(self, past: int) -> StepCost:
        """Cost where so many bytes are before a step: that of the nearest number."""
        return min(self.costs, key=lambda one: abs(one[0] - past))[1]


def prior_plan(
    model: ByteLM, pairs: PairCorrection | None = None, calibration: Calibration | None = None
) -> DecodePlan:
    """Guesses of what steps cost, for a model that was not timed here.

    Args:
        model: To be decoded.
        pairs: Correction of its heads, which belongs to its weights alone.
        calibration: Of its drafts, which does too.
    """
    cost = prior_cost(model.embedding.device.type, heads=_share_of_draft_heads(model))
    return DecodePlan(((0, cost),), calibration or Calibration(), pairs=pairs)


def generate(
    model: ByteLM, prompt: bytes, settings: GenerateSettings, *, context_bytes: int, tuned: DecodePlan | None = None
) -> Generation:
    """Continue a prompt, as ``decode_steps`` does, and return everything at the end."""
    begin = time.perf_counter()
    steps = list(decode_steps(model, prompt, settings, context_bytes=context_bytes, tuned=tuned))
    return Generation.of(steps, prediction_heads=model.heads.count, elapsed_s=time.perf_counter() - begin)


def decode_steps(
    model: ByteLM, prompt: bytes, settings: GenerateSettings, *, context_bytes: int, tuned: DecodePlan | None = None
) -> Iterator[Step]:
    """Continue a prompt step by step.

    Args:
        model: On any device, in any floating dtype.
        prompt: Beginning of a document, any bytes, also none.
        settings: What is asked.
        context_bytes: Slots of the context, at least 2; the window that the model was trained with.
        tuned: What was measured on this machine.

    Yields:
        One ``Step`` a pass, the last one with its finish reason; no step if no byte is asked for.

    Raises:
        GenerationError: The model's logits are not finite.

    Example:
        After "a", heads 1 and 2 had drafted "bc". Head 0 chose "b" after "a" and "x" after "ab": the step has
        ``data=b"bx", sources=(1, 0), drafted=(1, 2), accepted=1, finish_reason=None``.
    """
    for _, step in decode_batch(model, [Request(prompt, settings)], context_bytes=context_bytes, slots=1, tuned=tuned):
        yield step


@torch.inference_mode()
def decode_batch(
    model: ByteLM,
    requests: Iterable[Request],
    *,
    context_bytes: int,
    slots: int = 8,
    tuned: DecodePlan | None = None,
) -> Iterator[tuple[int, Step]]:
    """Continue many prompts side by side; each gets the bytes that it would get alone.

    Args:
        model: On any device, in any floating dtype.
        requests: Prompts with their settings, taken one by one as places become free. They may differ in everything
            but ``draft`` and ``exact``.
        context_bytes: Slots of each context, at least 2.
        slots: Sequences at a time, at least 1.
        tuned: What was measured on this machine.

    Yields:
        The number of a request and its next ``Step``; the last of each has a finish reason. A request for no byte
        has no step.

    Raises:
        GenerationError: The model's logits are not finite, or requests differ in what they must share.
    """
    waiting = enumerate(requests)
    engine: _Engine | None = None
    running: list[_Sequence] = []
    caches: list[KVCache] = []
    while True:
        while len(running) < slots and (entry := next(waiting, None)) is not None:
            index, request = entry
            engine = engine or _Engine(model, request.settings, tuned)
            engine.check(request.settings)
            if request.settings.max_bytes > 0:
                cache = caches.pop() if caches else model.new_cache(1, max(2, model.config.ids_for(context_bytes)))
                running.append(_Sequence(index, request, model, cache, engine))
        if engine is None or not running:
            return
        yield from engine.step(running)
        caches += [one.cache for one in running if one.finished]
        running = [one for one in running if not one.finished]


def prefill(model: ByteLM, cache: KVCache, ids: Sequence[int], start: int) -> None:
    """Fill the cache afresh with the ids from ``start``, all but the last, which the next pass reads."""
    cache.truncate(0)
    inputs_1T = torch.tensor([ids[start:-1]], dtype=torch.int64, device=model.embedding.device)
    model.prefill(inputs_1T, cache)


def padded_rows(prediction_heads: int) -> int:
    """Rows of a sequence in every pass where their number must not change: room for an id and K - 1 drafts."""
    return 1 if prediction_heads == 1 else -(-prediction_heads // ROWS_MULTIPLE) * ROWS_MULTIPLE


def row_rule(model: ByteLM, settings: GenerateSettings) -> RowRule:
    """How rows are rounded up so that their bits depend on nothing beside them."""
    if settings.exact == "off":
        return RowRule()
    if model.embedding.device.type == "cpu":
        return RowRule(sequence=model.rows_of_a_sequence, whole=ROWS_MULTIPLE)
    return RowRule(least=padded_rows(model.heads.count), fixed=True)


def context_start(length: int, context_bytes: int) -> int:
    """Index of the first id that is read when a generation begins with ``length`` ids.

    Example:
        >>> context_start(8, context_bytes=8), context_start(9, context_bytes=8)
        (0, 5)
    """
    return 0 if length <= context_bytes else slid_start(length, context_bytes)


def slid_start(length: int, context_bytes: int) -> int:
    """Index of the first id that is kept when the context slides: its last half stays."""
    return length - context_bytes // 2


class _Sequence:
    """One prompt on its way.

    Attributes:
        index: Of its request.
        ids: All that is certain: ``EOD``, the prompt, the output.
        node: After the last of them.
        ahead: What the trunk chose behind a branch that was right: the beginning of the next draft.
        logits_KV: Of the draft heads after ``ahead``; None where they were not asked.
        asked: Whether that is so.
    """

    def __init__(self, index: int, request: Request, model: ByteLM, cache: KVCache, engine: "_Engine") -> None:
        self.index, self.settings, self.cache = index, request.settings, cache
        vocabulary = model.vocabulary
        self.ids = [EOD, *vocabulary.encode(request.prompt).tolist()]
        self.outlet = Outlet(request.settings.max_bytes, request.settings.stop, vocabulary)
        self.law = request.settings.law(vocabulary.count)
        self.node = self.law.first_node(request.prompt)
        past = request.prompt if vocabulary is BYTES else None
        self.drafter = Drafter(
            self.law, request.settings.draft, engine.calibration, past, None if past is None else engine.plan.pairs
        )
        self.ahead: list[int] = []
        self.logits_KV: npt.NDArray[np.float32] | None = None
        # Of rejection sampling, where the noise of a position will not do: a draft that fails is drawn again.
        self.random = np.random.Generator(np.random.Philox(key=(self.settings.seed << 64) + self.settings.sequence))
        self.finished = False
        self.asked = False
        prefill(model, cache, self.ids, context_start(len(self.ids), cache.capacity))

    @property
    def slots_left(self) -> int:
        """Slots for the real rows of a pass: up to the end of the first row's key range, or of the context."""
        bucket_end = (self.cache.length // BUCKET + 1) * BUCKET
        return min(bucket_end, self.cache.capacity) - self.cache.length


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What head 0 made of a draft.

    Attributes:
        choices: Ids that it chose after the first id and after each accepted draft; the last one is its own.
        ahead: What it chose behind a branch that the last choice has met, one after another.
        row: Of the pass, where the last of all these choices was made.
    """

    choices: list[int]
    ahead: list[int]
    row: int

    @property
    def accepted(self) -> int:
        return len(self.choices) - 1


@dataclass(slots=True)
class _Engine:
    """What all sequences share: model, tier, what is known of costs and drafts."""

    model: ByteLM
    settings: GenerateSettings
    tuned: DecodePlan | None
    calibration: Calibration = field(init=False)
    plan: DecodePlan = field(init=False)
    cost: StepCost = field(init=False)
    rule: RowRule = field(init=False)
    heads: bool = field(init=False)
    pace: tuple[float, float] = (0.0, 0.0)
    sequences: int = 1

    def __post_init__(self) -> None:
        model = self.model
        self.rule = row_rule(model, self.settings)
        self.heads = self.settings.draft in ("adaptive", "heads", "tree") and model.heads.count > 1
        self.plan = prior_plan(model) if self.tuned is None else self.tuned
        known = self.plan.calibration
        self.calibration = known if self.plan.shared else Calibration(dict(known.counts))
        self.cost = self.plan.cost_at(0)

    def check(self, settings: GenerateSettings) -> None:
        if self.model.vocabulary is not BYTES:
            asked = (settings.utf8, settings.repetition_penalty != 1.0, settings.logprobs, settings.draft == "ngram")
            for name, wants_bytes in zip(("utf8", "repetition_penalty", "logprobs", "draft"), asked, strict=True):
                if wants_bytes:
                    raise GenerationError(
                        f"{name} = {getattr(settings, name)!r} looks at bytes, and ids of {self.model.vocabulary.name} "
                        "stand for several; leave it out"
                    )
        for name in ("draft", "exact"):
            if getattr(settings, name) != getattr(self.settings, name):
                raise GenerationError(f"prompts that are decoded side by side differ in {name}; give all the same")

    def step(self, sequences: list[_Sequence]) -> Iterator[tuple[int, Step]]:
        """One pass for all sequences, and what it gave to each."""
        self.sequences = len(sequences)
        self.cost = self.plan.cost_at(max(one.cache.length for one in sequences))
        drafts = self._drafts(sequences)
        rows = self.rule.padded([1 + len(draft.nodes) for draft in drafts])
        starts = np.cumsum([0, *rows]).tolist()
        inputs_1M = np.zeros((1, starts[-1]), np.int64)
        passes = []
        for one, draft, start, count in zip(sequences, drafts, starts, rows, strict=False):
            ids = [one.ids[-1], *(node.identifier for node in draft.nodes)]
            inputs_1M[0, start : start + len(ids)] = ids
            parents = draft.parents
            if parents is not None:  # padding goes on behind the last row
                parents += range(len(parents) - 1, count - 1)
            passes.append(self.model.cached_pass(one.cache, count, parents))
        shared = passes[0] if len(passes) == 1 else JoinedPass.build(passes)
        device = self.model.embedding.device
        hidden_1MD = self.model.decode(torch.from_numpy(inputs_1M).to(device), shared)

        # Waiting for an accelerator costs more than draft heads at rows that will not be accepted: there all heads
        # run at all rows and are fetched at once. On the CPU they run at the one row that counts.
        at_once = self.model.heads.count if self.heads and device.type != "cpu" else 1
        heads = self.model.heads
        logits_MKV = heads.decode_logits(hidden_1MD, shared, range(at_once))[0].float().cpu().numpy()
        logits_MV = logits_MKV[:, 0]
        best_M = logits_MV[:, : self.model.vocabulary.count].argmax(-1).tolist()

        verdicts, steps = [], []
        for one, draft, start, count in zip(sequences, drafts, starts, rows, strict=False):
            own_MV = logits_MV[start : start + 1 + len(draft.nodes)]
            if not np.isfinite(own_MV).all():
                raise GenerationError(
                    "the model's logits are not finite: its weights have diverged; use another checkpoint"
                )
            verdict = verify(draft, own_MV, best_M[start:], one)
            one.drafter.observe(draft, verdict.choices, self.cost)
            verdicts.append(verdict)
            steps.append((one.index, _emit(one, draft, verdict, own_MV, count)))

        asking = [place for place, one in enumerate(sequences) if self.heads and one.drafter.wants_heads()]
        if heads.cache_layers and self.heads:
            asking = list(range(len(sequences)))  # heads that attend read every byte, whoever asks
        found = dict[int, npt.NDArray[np.float32]]()
        if asking:
            wanted = [starts[place] + verdicts[place].row for place in asking]
            if at_once > 1:
                found_NKV = logits_MKV[wanted, 1:]
            else:
                drafting = heads.decode_logits(hidden_1MD, shared, range(1, heads.count), rows=wanted)
                found_NKV = drafting[0].float().cpu().numpy()
            found = dict(zip(asking, found_NKV, strict=True))
        for place, (one, verdict) in enumerate(zip(sequences, verdicts, strict=True)):
            one.ahead, one.logits_KV, one.asked = verdict.ahead, found.get(place), place in found
            one.cache.advance(len(verdict.choices))
        self._keep_pace(sum(len(verdict.choices) for verdict in verdicts), starts[-1], asked=bool(asking))
        yield from steps

    def _drafts(self, sequences: list[_Sequence]) -> list[Draft]:
        proposals, limits = [], []
        for one in sequences:
            if one.cache.length == one.cache.capacity:
                prefill(self.model, one.cache, one.ids, slid_start(len(one.ids), one.cache.capacity))
            limit = one.slots_left - 1
            if self.rule.fixed:
                limit = min(limit, self.rule.least - 1)
            path = min(limit, one.settings.max_bytes - one.outlet.count - 1)
            limits.append(limit)
            if self.settings.draft == "none":
                proposals.append([])
            elif one.settings.accept == "rejection":
                proposals.append(one.drafter.drawn(one.logits_KV, one.node, path, one.random))
            else:
                proposals.append(one.drafter.candidates(one.logits_KV, one.ahead, one.node, path))
        base = self.cost.of(self.rule.total([1] * len(sequences)), len(sequences))
        gained, spent = self.pace
        # At first as if nothing were accepted; then at the rate of the last steps.
        rate = (gained + len(sequences)) / (spent + base)
        drafts = plan(proposals, self.settings.draft, self.cost, rate, rows=self.rule)
        return [draft.cut(limit) for draft, limit in zip(drafts, limits, strict=True)]

    def _keep_pace(self, gained: int, rows: int, *, asked: bool) -> None:
        spent = self.cost.of(rows, self.sequences) + (self.cost.heads if asked else 0.0)
        self.pace = self.pace[0] * _PACE_DECAY + gained, self.pace[1] * _PACE_DECAY + spent


def verify(draft: Draft, logits_MV: npt.NDArray[np.float32], best_M: Sequence[int], sequence: _Sequence) -> _Verdict:
    """Follow head 0 through a draft, as far as they agree, then into a branch.

    Args:
        draft: Whose nodes stand in rows 1 … of the pass.
        logits_MV: Of head 0, real rows of the sequence alone.
        best_M: The highest logit of each row, of equal ones the lowest id.
        sequence: Whose law chooses.
    """
    law, node, row = sequence.law, sequence.node, 0
    if sequence.settings.accept == "rejection":
        return _verify_drawn(draft, logits_MV, sequence)
    plain = law.sampler.greedy and not law.constrained

    def choose() -> int:
        return best_M[row] if plain else law.choose(logits_MV[row], node)

    choices = [choose()]
    while row < draft.chain and draft.nodes[row].identifier == choices[-1]:
        row, node = row + 1, node.after(choices[-1])
        choices.append(choose())
    ahead: list[int] = []
    last = choices[-1]
    while (branch := draft.child(row, last)) is not None:
        row, node = branch, node.after(last)
        last = choose()
        ahead.append(last)
    return _Verdict(choices, ahead, row)


def _verify_drawn(draft: Draft, logits_MV: npt.NDArray[np.float32], sequence: _Sequence) -> _Verdict:
    """Judge a chain that was drawn, as a block."""
    node, of_trunk, of_draft = sequence.node, [], []
    for row, logits_V in enumerate(logits_MV):
        of_trunk.append(probabilities(sequence.law, logits_V, node))
        if row < len(draft.nodes):
            law_V = draft.nodes[row].drawn_from
            assert law_V is not None
            of_draft.append(law_V)
            node = node.after(draft.nodes[row].identifier)
    drafted = [node.identifier for node in draft.nodes]
    choices = verify_block(sequence.random, drafted, of_draft, of_trunk)
    return _Verdict(choices, [], len(choices) - 1)


def _emit(sequence: _Sequence, draft: Draft, verdict: _Verdict, logits_MV: npt.NDArray[np.float32], rows: int) -> Step:
    """Make what was chosen certain: everything of the sequence but its cache goes on."""
    choices, accepted = verdict.choices, verdict.accepted
    sources = [*(node.source for node in draft.nodes[:accepted]), TRUNK]
    logprobs: list[float | None] = [None] * len(choices)
    if sequence.settings.logprobs:
        wide_MV = logits_MV[: len(choices)].astype(np.float64)
        wide_MV -= wide_MV.max(-1, keepdims=True)
        totals_M = np.log(np.exp(wide_MV).sum(-1))
        logprobs = [float(wide_MV[row, chosen] - totals_M[row]) for row, chosen in enumerate(choices)]
    finish_reason = sequence.outlet.take([Chosen(*one) for one in zip(choices, sources, logprobs, strict=True)])
    sequence.finished = finish_reason is not None
    data, released = sequence.outlet.release(last=sequence.finished)
    if not sequence.finished:
        sequence.ids += choices
        sequence.drafter.extend(choices)
        for identifier in choices:
            sequence.node = sequence.node.after(identifier)
    return Step(
        data,
        tuple(one.source for one in released),
        tuple(one.logprob for one in released if one.logprob is not None),
        tuple(node.source for node in draft.nodes[: draft.chain]),
        accepted,
        rows,
        draft.expected,
        sequence.asked,
        finish_reason,
    )


def _share_of_draft_heads(model: ByteLM) -> float:
    """Weights of the draft heads over those of a pass of the trunk with head 0."""
    counts = model.parameter_counts()
    draft = counts["heads"] * (model.heads.count - 1) / model.heads.count
    return draft / (counts["trunk"] + counts["heads"] - draft)
