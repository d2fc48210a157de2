"""One run of a comparison, measured: bits per byte, parameters, costs of training, speed of decoding."""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from bytelm.api import LanguageModel, load
from bytelm.arms import Arm, Budget, Plan, bytes_of_a_step, flops_of, parameters_of, tolerance_of
from bytelm.config import RunConfig
from bytelm.corpora import Corpora
from bytelm.decode import generate
from bytelm.device import choose_decoding_threads, choose_device
from bytelm.engine import NOT_FINITE
from bytelm.errors import CheckpointError, GenerationError
from bytelm.evaluate import BitsPerByte, bits_per_byte, excerpts
from bytelm.foreign import Written, open_foreign
from bytelm.generation import GenerateSettings, Generation
from bytelm.job import choose_precision
from bytelm.memory import trace_step
from bytelm.own_files import ANYTHING, FLAG, TEXT, WHOLE, Fields, ListOf, Nullable, Number
from bytelm.run_log import read_log
from bytelm.token_packing import pack_batch
from bytelm.vocab import BYTE_VOCABULARY, Vocab

_PROMPT_BYTES: Final = 96
_COUNTED_BYTES: Final = 64_000_000
"""Bytes of a training whose ids are counted; the beginning of a longer one stands for the rest."""
_TEMPERATURE: Final = 0.8
UNKNOWN_OF_FOREIGN: Final = (
    "training_flops",
    "training_seconds",
    "training_bytes",
    "training_bytes_per_second",
    "training_memory_bytes",
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run: an arm with a seed and a budget. What nobody knows of a model that was made elsewhere is NaN.

    Attributes:
        name: Name of the arm.
        seed: Seed of the run.
        budget: Amount of the budget that the run was trained within; None if it was measured as found.
        trained: Whether the run was trained here at the budget.
        bits_per_byte: Score of head 0 over all scored bytes.
        bits_per_byte_by_head: Score of each head; None for a head that has no target.
        scored_bytes: Number of scored bytes.
        scored_ids: Number of ids that stand for the scored bytes.
        parameters: All parameters of the model.
        parameters_embedding: Parameters of the embedding and the unembedding.
        parameters_ngram_tables: Parameters of the n-gram tables.
        parameters_inner: Parameters without tables, embedding and unembedding.
        training_flops: FLOPs of the training, from the ids counted in its windows.
        training_seconds: Seconds of the training's clock: steps, validations and saving.
        training_bytes: Bytes read in the training.
        training_bytes_per_second: Median over the logged steps.
        training_memory_bytes: Traced peak of a step: weights, gradients, optimizer, activations.
        flops_per_byte_training: FLOPs for a byte of a training window.
        flops_per_byte_decoding: FLOPs for a byte generated without drafts.
        bytes_per_second_plain: Bytes generated in a second by the fastest decoder without drafts.
        bytes_per_second_speculative: The same with drafts of the model's own heads; the bytes are equal.
        decoder: Decoder in words: the engine, torch or transformers.
        bytes_per_step: Bytes generated with drafts for each pass of the trunk.
        bytes_per_id: Mean bytes of an id of the vocabulary.
        share_of_budget: Share of the budget that was really spent.
        met: Whether the share is within the tolerance.
        tolerance: Share by which the budget may be missed.
        curve: Validations during training: bytes, FLOPs, seconds, bits per byte.
        load_before: Mean number of processes that wanted a core in the minute before; None where it is not told.
    """

    name: str
    seed: int
    budget: float | None
    trained: bool
    bits_per_byte: float
    bits_per_byte_by_head: tuple[float | None, ...]
    scored_bytes: int
    scored_ids: int
    parameters: int
    parameters_embedding: int
    parameters_ngram_tables: int
    parameters_inner: int
    training_flops: float
    training_seconds: float
    training_bytes: float
    training_bytes_per_second: float
    training_memory_bytes: float
    flops_per_byte_training: float
    flops_per_byte_decoding: float
    bytes_per_second_plain: float
    bytes_per_second_speculative: float
    decoder: str
    bytes_per_step: float
    bytes_per_id: float
    share_of_budget: float | None
    met: bool | None
    tolerance: float | None
    curve: tuple[tuple[float, float, float, float], ...]
    load_before: float | None


_AMOUNT: Final = Number(0.0)
KEPT: Final = Fields(
    {
        "key": Fields(others=ANYTHING),
        "rule": TEXT,
        "measured": Fields(
            {
                **{field.name: _AMOUNT for field in dataclasses.fields(Measured) if field.type in (float, int)},
                **dict.fromkeys(UNKNOWN_OF_FOREIGN, Nullable(_AMOUNT)),
                "name": TEXT,
                "decoder": TEXT,
                "seed": WHOLE,
                "budget": Nullable(_AMOUNT),
                "trained": FLAG,
                "bits_per_byte_by_head": ListOf(Nullable(_AMOUNT), least=1),
                "share_of_budget": Nullable(_AMOUNT),
                "met": Nullable(FLAG),
                "tolerance": Nullable(_AMOUNT),
                "curve": ListOf(ListOf(_AMOUNT, least=4, most=4)),
                "load_before": Nullable(_AMOUNT),
            }
        ),
    }
)
"""Form of a measurement as it is kept."""


def measure(
    plan: Plan,
    arm: Arm,
    run: Path,
    trained: tuple[RunConfig, Budget] | None,
    corpora: Corpora,
    held_out: Sequence[bytes],
    load_before: float | None,
) -> tuple[Measured, str]:
    """Measure a run of bytelm.

    Args:
        plan: How it is measured.
        arm: Whose run it is.
        run: Its folder.
        trained: Settings and budget with which it was trained for this comparison; None where it was found.
        corpora: What it was trained on.
        held_out: Documents to score.
        load_before: See ``Measured``.

    Returns:
        What was measured, and how much context each scored byte had, in words.

    Raises:
        CheckpointError: The run is damaged, or has not logged what is asked for.
        GenerationError: The model's logits are not finite.
    """
    language_model = load(run, device=plan.base.train.device)
    own, model = language_model.config, language_model.model
    context_bytes = plan.base.data.window_bytes
    scores = bits_per_byte(model, held_out, context_bytes=context_bytes, stride=plan.stride_bytes)
    _check_finite(run, scores)
    plain, speculative = _decoded(plan, language_model, held_out)
    records = read_log(run)
    validations = [record for record in records if record["kind"] == "validation"]
    steps = [record for record in records if record["kind"] == "step"]
    if not steps:
        raise CheckpointError(f"{run} has logged no step; give a run that was trained")
    last = max((*steps, *validations), key=lambda record: record["step"])
    seen_bytes, seconds = _number(last, "bytes_seen", run), _number(last, "elapsed_s", run)
    training, decoding = flops_of(own)
    ids_ratio = 1.0 if trained is None else _ids_ratio(own, model.vocabulary, corpora, int(seen_bytes))
    flops = training * ids_ratio * seen_bytes
    parameters = parameters_of(own)
    budget = tolerance = spent = None
    if trained is not None:
        budget = trained[1]
        tolerance = tolerance_of(own, budget)
        spent = {
            "parameters": parameters.total,
            "flops": flops,
            "bytes": seen_bytes,
            "seconds": seconds,
        }[budget.kind] / budget.amount
    device = choose_device(own.train.device)
    traced = trace_step(own, device, bfloat16=choose_precision(own.train, device) == "bfloat16")
    assert scores.by_head[0] is not None
    return (
        Measured(
            name=arm.name,
            seed=own.train.seed,
            budget=None if budget is None else budget.amount,
            trained=trained is not None,
            bits_per_byte=scores.by_head[0],
            bits_per_byte_by_head=scores.by_head,
            scored_bytes=scores.scored_bytes,
            scored_ids=scores.scored_ids,
            parameters=parameters.total,
            parameters_embedding=parameters.embedding,
            parameters_ngram_tables=parameters.ngram_tables,
            parameters_inner=parameters.inner,
            training_flops=flops,
            training_seconds=seconds,
            training_bytes=seen_bytes,
            training_bytes_per_second=statistics.median(_number(record, "bytes_per_second", run) for record in steps),
            training_memory_bytes=traced.memory.total,
            flops_per_byte_training=training * ids_ratio,
            flops_per_byte_decoding=decoding,
            bytes_per_second_plain=_rate(plain),
            bytes_per_second_speculative=_rate(speculative),
            decoder=str(language_model.decoded_by),
            bytes_per_step=sum(len(one.data) for one in speculative) / max(1, sum(one.steps for one in speculative)),
            bytes_per_id=own.model.bytes_per_id,
            share_of_budget=spent,
            met=None if spent is None or tolerance is None else abs(spent - 1.0) <= tolerance,
            tolerance=tolerance,
            curve=tuple(
                (
                    record["bytes_seen"],
                    training * ids_ratio * record["bytes_seen"],
                    record["elapsed_s"],
                    record["bits_per_byte"],
                )
                for record in validations
                if all(record.get(name) is not None for name in ("bytes_seen", "elapsed_s", "bits_per_byte"))
            ),
            load_before=load_before,
        ),
        scores.rule,
    )


def measure_foreign(
    plan: Plan, arm: Arm, folder: Path, held_out: Sequence[bytes], load_before: float | None
) -> tuple[Measured, str]:
    """Measure a model that was made elsewhere. It has no drafts: its speculative figures are the plain ones.

    Args and Returns are those of ``measure``; ``folder`` is that of the model.

    Raises:
        ConfigError: transformers is not installed, or the model cannot be compared.
        GenerationError: The model's logits are not finite.
    """
    found = open_foreign(folder, device=choose_device(plan.base.train.device))
    context_bytes = plan.base.data.window_bytes
    scores = found.bits_per_byte(held_out, context_bytes=context_bytes, stride=plan.stride_bytes)
    _check_finite(folder, scores)
    bytes_per_id = scores.scored_bytes / scores.scored_ids
    ids = math.ceil(plan.generated_bytes / bytes_per_id)
    prompts = _prompts(plan, held_out)
    found.check(1 + max(len(found.vocabulary.encode(prompt)) for prompt in prompts) + ids)
    parameters, inner = found.parameters()
    written: list[Written] = []
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(choose_decoding_threads(parameters))
        for seed, prompt in enumerate([prompts[0], *prompts]):
            written.append(found.write(prompt, ids=ids, temperature=_TEMPERATURE, seed=seed))
    finally:
        torch.set_num_threads(threads)
    written_bytes = sum(len(one.data) for one in written[1:])
    rate = written_bytes / sum(one.elapsed_s for one in written[1:])
    flops = found.flops_per_byte(held_out, context_bytes=context_bytes)
    assert scores.by_head[0] is not None
    return (
        Measured(
            name=arm.name,
            seed=0,
            budget=None,
            trained=False,
            bits_per_byte=scores.by_head[0],
            bits_per_byte_by_head=scores.by_head,
            scored_bytes=scores.scored_bytes,
            scored_ids=scores.scored_ids,
            parameters=parameters,
            parameters_embedding=parameters - inner,
            parameters_ngram_tables=0,
            parameters_inner=inner,
            training_flops=math.nan,
            training_seconds=math.nan,
            training_bytes=math.nan,
            training_bytes_per_second=math.nan,
            training_memory_bytes=math.nan,
            flops_per_byte_training=3 * flops,
            flops_per_byte_decoding=flops,
            bytes_per_second_plain=rate,
            bytes_per_second_speculative=rate,
            decoder="transformers",
            bytes_per_step=written_bytes / sum(one.ids for one in written[1:]),
            bytes_per_id=bytes_per_id,
            share_of_budget=None,
            met=None,
            tolerance=None,
            curve=(),
            load_before=load_before,
        ),
        scores.rule,
    )


def selection_score(run: Path, plan: Plan, text: Sequence[bytes]) -> float:
    """Bits per byte of head 0 over the text by which a search chooses.

    Args:
        run: Folder of a training of the search.
        plan: Has the context and the stride.
        text: Documents of the selection part.

    Raises:
        GenerationError: The model's logits are not finite.
    """
    model = load(run, device=plan.base.train.device).model
    scores = bits_per_byte(model, text, context_bytes=plan.base.data.window_bytes, stride=plan.stride_bytes)
    _check_finite(run, scores)
    assert scores.by_head[0] is not None
    return scores.by_head[0]


def _check_finite(place: Path, scores: BitsPerByte) -> None:
    for head, bits in enumerate(scores.by_head):
        if bits is not None and not math.isfinite(bits):
            raise GenerationError(f"{place}: bits per byte of head {head} are not finite; {NOT_FINITE}")


def _number(record: Mapping[str, Any], name: str, run: Path) -> float:
    """A figure of a logged record, which may be of a version that did not log it."""
    value = record.get(name)
    if value is None:
        raise CheckpointError(f"{run} has logged no {name} at step {record['step']}; give a run of this version")
    return value


def _prompts(plan: Plan, held_out: Sequence[bytes]) -> list[bytes]:
    pieces = excerpts(held_out, sum(map(len, held_out)), count=plan.prompts, length=_PROMPT_BYTES)
    return [piece[:_PROMPT_BYTES] for piece in itertools.islice(pieces, plan.prompts)]


def _decoded(
    plan: Plan, language_model: LanguageModel, held_out: Sequence[bytes]
) -> tuple[list[Generation], list[Generation]]:
    """Continuations without drafts, and with those of the heads; turn by turn, so that both meet the same machine."""
    model, prompts = language_model.decoder, _prompts(plan, held_out)
    threads = torch.get_num_threads()
    plain: list[Generation] = []
    speculative: list[Generation] = []
    try:
        if language_model.engine is None:  # which has threads of its own
            torch.set_num_threads(choose_decoding_threads(language_model.model.parameter_counts()["total"]))
        for seed, prompt in enumerate([prompts[0], *prompts]):

            def settings(seed: int = seed, **changes: Any) -> GenerateSettings:
                return GenerateSettings(max_bytes=plan.generated_bytes, temperature=_TEMPERATURE, seed=seed, **changes)

            context_bytes = plan.base.data.window_bytes
            plain.append(generate(model, prompt, settings(draft="none"), context_bytes=context_bytes))
            speculative.append(generate(model, prompt, settings(draft="heads"), context_bytes=context_bytes))
    finally:
        torch.set_num_threads(threads)
    return plain[1:], speculative[1:]  # the first ones of a model pay for allocations


def _rate(generations: Sequence[Generation]) -> float:
    """Bytes per second, prompts included in the time."""
    return sum(len(one.data) for one in generations) / sum(one.elapsed_s for one in generations)


def _ids_by_step(config: RunConfig, vocabulary: Vocab, corpora: Corpora) -> Iterator[int]:
    """Ids that each step of a training learns from, counted in the windows that it reads."""
    with corpora.loader(config, batch_windows=config.train.batch_windows) as loader:
        while True:
            yield sum(
                int(pack_batch(batch, config, vocabulary, torch.device("cpu")).valid_BTK[..., 0].sum())
                for batch in itertools.islice(loader, config.train.accumulation)
            )


def _ids_ratio(config: RunConfig, vocabulary: Vocab, corpora: Corpora, read_bytes: int) -> float:
    """Ids of a training over those that ``bytes_per_id`` lets expect; 1 for bytes."""
    if vocabulary.name == BYTE_VOCABULARY:
        return 1.0
    step_bytes = bytes_of_a_step(config)
    steps = max(1, min(read_bytes, _COUNTED_BYTES) // step_bytes)
    ids = sum(itertools.islice(_ids_by_step(config, vocabulary, corpora), steps))
    return ids * vocabulary.bytes_per_id / (steps * step_bytes)


def with_counted_steps(config: RunConfig, vocabulary: Vocab, corpora: Corpora, budget: Budget) -> RunConfig:
    """Settings whose steps meet a budget of operations, where ids stand for several bytes: the ids are counted.

    Args:
        config: Settings of a training; returned unchanged if nothing is to be counted.
        vocabulary: Vocabulary of the model.
        corpora: What it will be trained on.
        budget: To be met.
    """
    if budget.kind != "flops" or vocabulary.name == BYTE_VOCABULARY or budget.amount > _COUNTED_BYTES * _flops(config):
        return config
    wanted = budget.amount / (_flops(config) * vocabulary.bytes_per_id)
    ids = steps = 0
    counted = _ids_by_step(config, vocabulary, corpora)
    while ids < wanted:
        ids += next(counted)
        steps += 1
    return config.with_changes([f"train.steps={steps}"])


def _flops(config: RunConfig) -> float:
    return flops_of(config)[0]


def known(one: Measured) -> dict[str, Any]:
    """A measurement as JSON values, None being what nobody knows."""
    values = dataclasses.asdict(one)
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}
