"""Self-speculative decoding on torch, on any device: a prompt becomes bytes.

    prefill   the trunk reads the prompt, all but its last id, into the cache
    draft     heads 1 … K - 1 at the last accepted row, and prompt lookup, propose what may come next
    verify    one pass of the trunk over the last id and the drafts; head 0 chooses the id after each of them
    accept    drafts are kept as far as head 0 chose the same; its first own choice is kept as well

A step is one pass: it gives the accepted drafts and one id more. Plain decoding is the same loop with nothing drafted,
so drafts change no byte but for rounding: torch's kernels sum one row and four rows in different orders, and where two
logits lie closer than that, another byte may be chosen. The engine (``bytelm.engine``) has no such exception.

Several sequences are one ragged batch: each has its own length in the cache, and its rows are padded on the right to
those of the longest draft. The running sequences are always the first ones of the cache. One that ends makes room for
the next request.

The context is ``context_bytes`` slots. A sequence that has filled them goes on with its last half, read afresh; a
prompt that is longer begins with its last half. What has slid out is forgotten. Where this happens depends on
positions alone, never on drafts.

Shapes: B sequences, T bytes of a prompt, M rows of a pass, D width, K prediction heads, V vocabulary.

Source: Stern et al. 2018, arXiv 1811.03115, section 3.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from bytelm.decoding.plan import DecodePlan, Request, context_start, prior_plan, slid_start
from bytelm.drafting import MOST_DRAFTS, TRUNK, Calibration, Candidate, Drafter, DraftPolicy, select_drafts
from bytelm.errors import GenerationError
from bytelm.generation import GenerateSettings, Step
from bytelm.kv_cache import KVCache
from bytelm.model import ByteLM
from bytelm.outlet import OutputBuffer
from bytelm.vocab import BYTES, EOD

_RATE_DECAY: Final = 0.95

Logits = npt.NDArray[np.float32]


@torch.inference_mode()
def decode_batch(
    model: ByteLM, requests: Iterable[Request], *, context_bytes: int, slots: int, tuned: DecodePlan | None
) -> Iterator[tuple[int, Step]]:
    """Continue many prompts side by side; see ``bytelm.decode.decode_batch``."""
    numbered = enumerate(requests)
    if (first := next(numbered, None)) is None:
        return
    decoder = _Decoder(model, first[1].settings, tuned)
    arriving = decoder.sequences(itertools.chain([first], numbered), context_bytes)
    running = list(itertools.islice(arriving, slots))
    if not running:
        return
    capacity = max(2, model.config.ids_for(context_bytes))
    cache = model.new_cache(len(running), capacity)
    for place, sequence in enumerate(running):
        prefill(model, cache, place, sequence.ids, context_start(len(sequence.ids), capacity))
    while running:
        yield from decoder.step(cache, running)
        for place in reversed(range(len(running))):
            if not running[place].finished:
                continue
            if (sequence := next(arriving, None)) is not None:
                running[place] = sequence
                prefill(model, cache, place, sequence.ids, context_start(len(sequence.ids), capacity))
            else:
                cache.move(len(running) - 1, place)
                running[place] = running[-1]
                running.pop()


class _Sequence:
    """One prompt on its way.

    Attributes:
        index: Number of its request.
        settings: Of its request.
        ids: All that is certain: ``EOD``, the prompt, the output.
        next_byte: How it chooses.
        context: Of the next choice.
        drafter: Proposes what comes next.
        output: On its way out.
        draft_logits_KV: Of the draft heads at the last accepted row; None where they did not run.
        finished: Whether its last step is done.
    """

    def __init__(
        self,
        index: int,
        request: Request,
        model: ByteLM,
        plan: DecodePlan,
        calibration: Calibration,
        context_bytes: int,
    ) -> None:
        self.index, self.settings = index, request.settings
        self.ids = [EOD, *model.vocabulary.encode(request.prompt).tolist()]
        self.next_byte = request.settings.next_byte(model.vocabulary.count)
        self.context = self.next_byte.first_context(request.prompt)
        known, pairs = (request.prompt[-context_bytes:], plan.pairs) if model.vocabulary is BYTES else (None, None)
        self.drafter = Drafter(self.next_byte, request.settings.draft, calibration, known, pairs)
        self.output = OutputBuffer(request.settings.max_bytes, request.settings.stop, model.vocabulary)
        self.draft_logits_KV: Logits | None = None
        self.finished = False


class _Decoder:
    """What all sequences share: the model, what is known of costs and drafts, and the rate of the last steps.

    Args:
        model: That decodes.
        settings: Of the first request; all have its ``draft`` and ``exact``.
        tuned: What was measured; guesses where None.
    """

    def __init__(self, model: ByteLM, settings: GenerateSettings, tuned: DecodePlan | None) -> None:
        self._model = model
        self._policy: DraftPolicy = settings.draft
        self._exact = settings.exact
        self._plan = prior_plan(model) if tuned is None else tuned
        known = self._plan.calibration
        self._calibration = known if self._plan.shared else Calibration(dict(known.counts))
        self._draft_heads = model.heads.count - 1 if settings.draft in ("adaptive", "heads") else 0
        self._gained, self._spent = 0.0, 0.0

    def sequences(self, requests: Iterable[tuple[int, Request]], context_bytes: int) -> Iterator[_Sequence]:
        """The requests, checked, each with its state; those for no byte are left out."""
        for index, request in requests:
            self._check(request.settings)
            if request.settings.max_bytes > 0:
                yield _Sequence(index, request, self._model, self._plan, self._calibration, context_bytes)

    def step(self, cache: KVCache, running: Sequence[_Sequence]) -> Iterator[tuple[int, Step]]:
        """One pass for all sequences, and what it gave to each."""
        heads, count = self._model.heads, len(running)
        for place, one in enumerate(running):
            if cache.lengths[place] == cache.capacity:
                prefill(self._model, cache, place, one.ids, slid_start(len(one.ids), cache.capacity))
        cost = self._plan.cost_at(max(cache.lengths[:count]))
        cost_of_heads = self._draft_heads * cost.head

        # At first the rate is that of plain decoding, then that of the last steps.
        rate = (self._gained + count) / (self._spent + cost.of(count * self._rounded(1), count))
        proposals = [draft(one, cache.capacity - cache.lengths[place]) for place, one in enumerate(running)]
        drafts = select_drafts(proposals, self._policy, cost, rate, round_rows=self._rounded)

        rows = self._rounded(1 + max(map(len, drafts)))
        inputs_BM = np.zeros((count, rows), np.int64)
        for place, (one, drafted) in enumerate(zip(running, drafts, strict=True)):
            inputs_BM[place, : 1 + len(drafted)] = [one.ids[-1], *(candidate.identifier for candidate in drafted)]
        shared = self._model.cached_pass(cache, count, rows)
        device = self._model.embedding.device
        hidden_BMD = self._model.decode(torch.from_numpy(inputs_BM).to(device), shared)
        logits_BMV = heads.decode_logits(hidden_BMD, shared, range(1))[:, :, 0].float().cpu().numpy()
        choices = [verify(*one) for one in zip(running, drafts, logits_BMV, strict=True)]

        steps = []
        for one, drafted, chosen, logits_MV in zip(running, drafts, choices, logits_BMV, strict=True):
            one.drafter.observe(drafted, chosen, cost_of_heads / cost.of(1))
            steps.append((one.index, accept(one, drafted, chosen, logits_MV, rows)))

        # Heads that attend keep keys of every accepted byte: they run in every step.
        wanted = [one.drafter.should_run_heads() for one in running]
        run_heads = self._draft_heads > 0 and (any(wanted) or heads.cache_layers > 0)
        if run_heads:
            row_B = torch.tensor([len(chosen) - 1 for chosen in choices], device=device)
            logits_B1KV = heads.decode_logits(hidden_BMD, shared, range(1, heads.count), row_B=row_B)
            for one, logits_KV in zip(running, logits_B1KV[:, 0].float().cpu().numpy(), strict=True):
                one.draft_logits_KV = logits_KV
        else:
            for one in running:
                one.draft_logits_KV = None
        cache.advance([len(chosen) for chosen in choices])
        self._gained = self._gained * _RATE_DECAY + sum(map(len, choices))
        self._spent = self._spent * _RATE_DECAY + cost.of(count * rows, count) + run_heads * cost_of_heads
        yield from steps

    def _rounded(self, rows: int) -> int:
        # Off the CPU rows are cheap, and each new shape costs choosing kernels and memory for it.
        return rows if self._model.embedding.device.type == "cpu" else 1 << (rows - 1).bit_length()

    def _check(self, settings: GenerateSettings) -> None:
        if settings.exact == "bits":
            raise GenerationError(
                "exact = 'bits' is the promise of the engine, and this model decodes through torch, whose kernels sum "
                "other numbers of rows in other orders; leave exact out"
            )
        if self._model.vocabulary is not BYTES:
            asked = (settings.utf8, settings.repetition_penalty != 1.0, settings.logprobs, settings.draft == "ngram")
            for name, wants_bytes in zip(("utf8", "repetition_penalty", "logprobs", "draft"), asked, strict=True):
                if wants_bytes:
                    raise GenerationError(
                        f"{name} = {getattr(settings, name)!r} looks at bytes, and ids of "
                        f"{self._model.vocabulary.name} stand for several; leave it out"
                    )
        for name, expected in (("draft", self._policy), ("exact", self._exact)):
            if getattr(settings, name) != expected:
                raise GenerationError(f"prompts that are decoded side by side differ in {name}; give all the same")


def prefill(model: ByteLM, cache: KVCache, place: int, ids: Sequence[int], start: int) -> None:
    """Fill a place of the cache afresh with the ids from ``start``, all but the last, which the next pass reads."""
    inputs_1T = torch.tensor([ids[start:-1]], dtype=torch.int64, device=model.embedding.device)
    model.prefill(inputs_1T, cache, place)


def draft(sequence: _Sequence, slots: int) -> list[Candidate]:
    """Candidates for the next pass, for which the cache has so many slots left."""
    bytes_left = sequence.settings.max_bytes - sequence.output.count
    limit = min(MOST_DRAFTS, slots - 1, bytes_left - 1)
    return sequence.drafter.propose(sequence.draft_logits_KV, sequence.context, limit)


def verify(sequence: _Sequence, drafted: Sequence[Candidate], logits_MV: Logits) -> list[int]:
    """The ids that head 0 chooses: after the last certain id, and after each draft as long as they agree.

    Example:
        Drafted "bc". Head 0 chooses "b" first and "x" after it: "bx", of which one byte was a draft.

    Raises:
        GenerationError: The logits are not finite.
    """
    if not np.isfinite(logits_MV[: 1 + len(drafted)]).all():
        raise GenerationError("the model's logits are not finite: its weights have diverged; use another checkpoint")
    context = sequence.context
    chosen = [sequence.next_byte.choose(logits_MV[0], context)]
    for row, candidate in enumerate(drafted, start=1):
        if candidate.identifier != chosen[-1]:
            break
        context = context.after(chosen[-1])
        chosen.append(sequence.next_byte.choose(logits_MV[row], context))
    return chosen


def accept(
    sequence: _Sequence, drafted: Sequence[Candidate], chosen: Sequence[int], logits_MV: Logits, rows: int
) -> Step:
    """Make the chosen ids certain: all but the last were drafts."""
    accepted = len(chosen) - 1
    sources = [*(candidate.source for candidate in drafted[:accepted]), TRUNK]
    logprobs: list[float] = []
    if sequence.settings.logprobs:
        wide_MV = logits_MV[: len(chosen)].astype(np.float64)
        wide_MV -= wide_MV.max(-1, keepdims=True)
        logprobs = (wide_MV[range(len(chosen)), chosen] - np.log(np.exp(wide_MV).sum(-1))).tolist()
    finish_reason = sequence.output.push(chosen, sources, logprobs)
    sequence.finished = finish_reason is not None
    if not sequence.finished:
        sequence.ids += chosen
        sequence.drafter.extend(chosen)
        for identifier in chosen:
            sequence.context = sequence.context.after(identifier)
    return Step(
        *sequence.output.pop_safe(last=sequence.finished),
        drafted=tuple(candidate.source for candidate in drafted),
        accepted=accepted,
        rows=rows,
        expected=1.0 + sum(candidate.path_probability for candidate in drafted),
        asked=0 if sequence.draft_logits_KV is None else len(sequence.draft_logits_KV),
        finish_reason=finish_reason,
    )
