"""Comparison: arms trained at an equal budget, over several seeds, measured alike, told with every axis.

Runs follow one another, the seeds outermost, so that a slow drift of the machine meets all arms alike. A measurement
is kept as soon as it is made; what was interrupted goes on where it was, run by run, and inside a run from its last
checkpoint. After training each run is asked whether it kept the budget, from what it did and not from what was planned.
"""

import dataclasses
import itertools
import json
import math
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

import bytelm
from bytelm import machine
from bytelm.api import LanguageModel, load
from bytelm.arms import Arm, Budget, bytes_of_a_step, flops_of, parameters_of, settings_of, tolerance_of
from bytelm.bpe import BPEVocab
from bytelm.checkpoint import checkpoints
from bytelm.config import RunConfig
from bytelm.corpora import Corpora, open_corpora
from bytelm.decode import generate
from bytelm.device import choose_decoding_threads, choose_device
from bytelm.engine import NOT_FINITE
from bytelm.errors import BytelmError, CheckpointError, CorpusError, GenerationError
from bytelm.evaluate import BitsPerByte, bits_per_byte, excerpts, some_bytes
from bytelm.events import Finished
from bytelm.files import refusals_named, write_file
from bytelm.foreign import Written, open_foreign
from bytelm.generation import GenerateSettings, Generation
from bytelm.job import choose_precision
from bytelm.memory import trace_step
from bytelm.own_files import ANYTHING, FLAG, TEXT, WHOLE, Fields, ListOf, Nullable, Number, read_json, read_small
from bytelm.run_curves import size
from bytelm.run_log import read_log
from bytelm.token_packing import pack_batch
from bytelm.train import train
from bytelm.vocab import BYTE_VOCABULARY, Vocab
from bytelm.vocabularies import learn_vocabulary

PATH_OF_RESULTS: Final = "comparison.json"
_RUNS: Final = "runs"
_MEASURED: Final = "measured"
_VOCABULARIES: Final = "vocabularies"
_PROMPT_BYTES: Final = 96
_VOCABULARY_BYTES: Final = 64 << 20
_COUNTED_BYTES: Final = 64_000_000
"""Of a training, whose ids are counted; of a longer one the beginning stands for the rest."""
_TEMPERATURE: Final = 0.8
_UNKNOWN_OF_FOREIGN: Final = (
    "training_flops",
    "training_seconds",
    "training_bytes",
    "training_bytes_per_second",
    "training_memory_bytes",
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared and how it is measured.

    Attributes:
        arms: In the order of the report.
        budget: Equal for all that are trained.
        seeds: Of weights and windows; each arm is trained with each.
        base: Settings that all arms share.
        scored_bytes: Held-out bytes that are scored, at most; the same ones for all.
        stride_bytes: What a scored window advances.
        prompts: Held-out prompts that are continued to measure speed.
        generated_bytes: Bytes of each continuation.
    """

    arms: tuple[Arm, ...]
    budget: Budget
    seeds: tuple[int, ...]
    base: RunConfig
    scored_bytes: int = 1 << 20
    stride_bytes: int
    prompts: int = 8
    generated_bytes: int = 256


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run: an arm with a seed. What nobody knows of a model that was made elsewhere is NaN.

    Attributes:
        name: Of the arm.
        seed: Of the run.
        trained: Whether it was trained here at the budget.
        bits_per_byte: Of head 0, over all scored bytes.
        bits_per_byte_by_head: Of each.
        scored_bytes: How many they are.
        scored_ids: Ids that they make.
        parameters: Of the model, in all.
        parameters_inner: Those that are neither embedding nor unembedding.
        training_flops: Operations of the training, from the ids that were counted in its windows.
        training_seconds: Of its clock: steps, validations and saving.
        training_bytes: Bytes that it read.
        training_bytes_per_second: Median of its logged steps.
        training_memory_bytes: At the peak of a step, traced: weights, gradients, optimizer, activations.
        flops_per_byte_training: Of a byte learnt from.
        flops_per_byte_decoding: Of a byte generated without drafts.
        bytes_per_second_plain: Generated, by the fastest decoder without drafts.
        bytes_per_second_speculative: Generated with drafts of the model's own heads, the same bytes as without.
        bytes_per_step: Of these, for a pass of the trunk.
        bytes_per_id: Of the vocabulary.
        share_of_budget: Of the budget that was really spent.
        met: Whether that is within the tolerance.
        tolerance: Share by which it may be missed.
        curve: Validations during training: bytes, operations, seconds, bits per byte.
        load_before: Mean number of processes that wanted a core in the minute before; None where it is not told.
    """

    name: str
    seed: int
    trained: bool
    bits_per_byte: float
    bits_per_byte_by_head: tuple[float | None, ...]
    scored_bytes: int
    scored_ids: int
    parameters: int
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
    bytes_per_step: float
    bytes_per_id: float
    share_of_budget: float | None
    met: bool | None
    tolerance: float | None
    curve: tuple[tuple[float, float, float, float], ...]
    load_before: float | None


_AMOUNT: Final = Number(0.0)
_KEPT: Final = Fields(
    {
        "key": Fields(others=ANYTHING),
        "rule": TEXT,
        "measured": Fields(
            {
                **{field.name: _AMOUNT for field in dataclasses.fields(Measured) if field.type in (float, int)},
                **dict.fromkeys(_UNKNOWN_OF_FOREIGN, Nullable(_AMOUNT)),
                "name": TEXT,
                "seed": WHOLE,
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
"""Of a measurement as it is kept."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A run that gave no measurement."""

    name: str
    seed: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that is known by now.

    Attributes:
        plan: What was asked for.
        place: Of the corpus.
        fingerprint: Of the corpus.
        measured: Runs in the order of the plan.
        failed: Runs that could not be measured.
        rule: How much context each scored byte had.
        machine: Where it ran, in words.
        cores: Of this machine that can be used.
        stopped: Whether the caller ended it early.
    """

    plan: Plan
    place: str | list[str]
    fingerprint: str | list[str]
    measured: tuple[Measured, ...]
    failed: tuple[Failed, ...]
    rule: str
    machine: str
    cores: int
    stopped: bool


def compare(
    plan: Plan,
    corpus: str | Path,
    out: Path,
    *,
    tell: Callable[[str], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Comparison:
    """Train and measure all arms of a plan, or go on with it.

    Args:
        plan: What to compare.
        corpus: Folder or address of a corpus with a validation split.
        out: Folder of the comparison, made if missing. One that is there goes on; arms and seeds may be added.
        tell: Is told in a line what happens.
        should_stop: Asked between the steps of a training; True saves and ends.

    Raises:
        ConfigError: An arm is impossible or cannot meet the budget; nothing is trained then.
        CorpusError: The corpus is missing or damaged, or holds nothing out.
        CheckpointError: ``out`` holds something else.
        StorageError: The disk refuses.
    """
    corpora = open_corpora(corpus, plan.base)
    if not corpora.corpora[0].raw_bytes("validation"):
        raise CorpusError(f"{corpus} holds nothing out to score; ingest it with --validation 0.01")
    with refusals_named(out):
        (out / _MEASURED).mkdir(parents=True, exist_ok=True)
        (out / _VOCABULARIES).mkdir(exist_ok=True)
    vocabularies = _vocabularies(plan, corpora, out, tell)
    configs = {
        arm.name: [
            settings_of(arm, plan.base, plan.budget, bytes_per_id=vocabularies[arm.name].bytes_per_id, seed=seed)
            for seed in plan.seeds
        ]
        for arm in plan.arms
        if arm.run is None
    }
    measured: dict[tuple[str, int], Measured] = {}
    failed: list[Failed] = []
    held_out = _held_out(plan, corpora)
    rule, stopped = "", False
    for index, seed in enumerate(plan.seeds):
        for arm in plan.arms:
            if stopped or (arm.run is not None and index):
                continue
            config = None if arm.run is not None else configs[arm.name][index]
            key = _key(plan, arm, config, corpora)
            path = out / _MEASURED / f"{arm.folder}-{seed}.json"
            found = _read(path, key)
            if found is None:
                tell(f"{arm.name}, seed {seed}: {'training' if config else 'measuring'}")
                try:
                    found = _run(plan, arm, config, vocabularies, corpora, corpus, out, held_out, should_stop)
                except BytelmError as error:
                    failed.append(Failed(name=arm.name, seed=seed, reason=str(error)))
                    tell(f"{arm.name}, seed {seed}: {error}")
                    continue
                if found is None:
                    stopped = True
                    continue
                kept = {"key": key, "measured": known(found[0]), "rule": found[1]}
                content = json.dumps(kept, indent=1, allow_nan=False)
                write_file(path, content.encode())
            measured[arm.name, seed], rule = found
            tell(_line(found[0]))
    return Comparison(
        plan=plan,
        place=corpora.place,
        fingerprint=corpora.fingerprint,
        measured=tuple(
            measured[arm.name, seed] for arm in plan.arms for seed in plan.seeds if (arm.name, seed) in measured
        ),
        failed=tuple(failed),
        rule=rule,
        machine=_machine(),
        cores=machine.cores().usable,
        stopped=stopped,
    )


def _run(
    plan: Plan,
    arm: Arm,
    config: RunConfig | None,
    vocabularies: Mapping[str, Vocab],
    corpora: Corpora,
    corpus: str | Path,
    out: Path,
    held_out: Sequence[bytes],
    should_stop: Callable[[], bool],
) -> tuple[Measured, str] | None:
    """Train where that is to be done, and measure; None where the caller ended it."""
    load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if config is None:
        assert arm.run is not None
        if arm.foreign:
            return _measure_foreign(plan, arm, arm.run, held_out, load_before)
        return _measure(plan, arm, arm.run, None, corpora, held_out, load_before)
    run = out / _RUNS / f"{arm.folder}-{config.train.seed}"
    vocabulary = vocabularies[arm.name]
    config = _with_counted_steps(config, vocabulary, corpora, plan.budget)
    finished = None
    for event in train(config, corpus, run, resume="auto", should_stop=should_stop, vocabulary=vocabulary):
        if isinstance(event, Finished):
            finished = event
    assert finished is not None
    if finished.reason == "stopped":
        return None
    return _measure(plan, arm, run, config, corpora, held_out, load_before)


def _measure(
    plan: Plan,
    arm: Arm,
    run: Path,
    config: RunConfig | None,
    corpora: Corpora,
    held_out: Sequence[bytes],
    load_before: float | None,
) -> tuple[Measured, str]:
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
    ids_ratio = 1.0 if config is None else _ids_ratio(own, model.vocabulary, corpora, int(seen_bytes))
    flops = training * ids_ratio * seen_bytes
    parameters, inner = parameters_of(own)
    spent = {
        "parameters": parameters,
        "flops": flops,
        "bytes": seen_bytes,
        "seconds": seconds,
    }[plan.budget.kind] / plan.budget.amount
    tolerance = None if config is None else tolerance_of(own, plan.budget)
    device = choose_device(own.train.device)
    traced = trace_step(own, device, bfloat16=choose_precision(own.train, device) == "bfloat16")
    assert scores.by_head[0] is not None
    return (
        Measured(
            name=arm.name,
            seed=own.train.seed,
            trained=config is not None,
            bits_per_byte=scores.by_head[0],
            bits_per_byte_by_head=scores.by_head,
            scored_bytes=scores.scored_bytes,
            scored_ids=scores.scored_ids,
            parameters=parameters,
            parameters_inner=inner,
            training_flops=flops,
            training_seconds=seconds,
            training_bytes=seen_bytes,
            training_bytes_per_second=statistics.median(_number(record, "bytes_per_second", run) for record in steps),
            training_memory_bytes=traced.memory.total,
            flops_per_byte_training=training * ids_ratio,
            flops_per_byte_decoding=decoding,
            bytes_per_second_plain=_rate(plain),
            bytes_per_second_speculative=_rate(speculative),
            bytes_per_step=sum(len(one.data) for one in speculative) / max(1, sum(one.steps for one in speculative)),
            bytes_per_id=own.model.bytes_per_id,
            share_of_budget=None if config is None else spent,
            met=None if tolerance is None else abs(spent - 1.0) <= tolerance,
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


def _measure_foreign(
    plan: Plan, arm: Arm, folder: Path, held_out: Sequence[bytes], load_before: float | None
) -> tuple[Measured, str]:
    """A model that was made elsewhere. It has no drafts: what it writes with them is what it writes without."""
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
            trained=False,
            bits_per_byte=scores.by_head[0],
            bits_per_byte_by_head=scores.by_head,
            scored_bytes=scores.scored_bytes,
            scored_ids=scores.scored_ids,
            parameters=parameters,
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


def _with_counted_steps(config: RunConfig, vocabulary: Vocab, corpora: Corpora, budget: Budget) -> RunConfig:
    """A budget of operations in steps, where ids stand for several bytes: those of its own windows are counted."""
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


def _held_out(plan: Plan, corpora: Corpora) -> list[bytes]:
    corpus = corpora.corpora[0]
    total = corpus.raw_bytes("validation")
    limit = min(total, plan.scored_bytes)
    documents = corpus.documents("validation")
    return list(some_bytes(documents, total, limit_bytes=limit, window_bytes=plan.base.data.window_bytes))


def _vocabularies(plan: Plan, corpora: Corpora, out: Path, tell: Callable[[str], None]) -> dict[str, Vocab]:
    """The vocabulary of each arm that is trained; one that was learnt before is read."""
    found: dict[str, Vocab] = {}
    for arm in plan.arms:
        if arm.run is not None:
            continue
        config = plan.base.with_changes(arm.changes[:1])
        name = config.model.vocabulary
        known = next((one for one in found.values() if one.name == name), None)
        path = out / _VOCABULARIES / f"{name.replace(':', '-')}.json"
        if known is None and name != BYTE_VOCABULARY and path.is_file():
            content = read_small(path, remedy="remove it, and go on", limit_bytes=_VOCABULARY_BYTES)
            known = BPEVocab.from_json(content, str(path))
        if known is None:
            if name != BYTE_VOCABULARY:
                tell(f"learning the vocabulary {name}")
            known = learn_vocabulary(config, corpora)
            if isinstance(known, BPEVocab):
                write_file(path, known.to_json())
        found[arm.name] = known
    return found


def _key(plan: Plan, arm: Arm, config: RunConfig | None, corpora: Corpora) -> dict[str, Any]:
    """What a measurement depends on, as JSON has it."""
    return json.loads(
        json.dumps(
            {
                "bytelm": bytelm.__version__,
                "arm": arm.name,
                "config": None if config is None else config.model_dump(mode="json"),
                "run": None if arm.run is None else _content(arm, arm.run),
                "corpus": corpora.fingerprint,
                "scored_bytes": plan.scored_bytes,
                "stride_bytes": plan.stride_bytes,
                "prompts": plan.prompts,
                "generated_bytes": plan.generated_bytes,
                "budget": str(plan.budget),
            }
        )
    )


def _content(arm: Arm, folder: Path) -> list[str]:
    """What tells one state of a folder from another."""
    if not arm.foreign:
        return [path.name for path in checkpoints(folder)]
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    return [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]


def known(one: Measured) -> dict[str, Any]:
    """A measurement as JSON values, None being what nobody knows."""
    values = dataclasses.asdict(one)
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}


def _read(path: Path, key: Mapping[str, Any]) -> tuple[Measured, str] | None:
    """A measurement that was made before, of just the same."""
    if not path.is_file():
        return None
    saved = read_json(path, _KEPT, remedy="remove it, and go on")
    measured, before, rule = saved["measured"], saved["key"], saved["rule"]
    fields: dict[str, Any] = dict(measured)
    fields["bits_per_byte_by_head"] = tuple(measured["bits_per_byte_by_head"])
    fields["curve"] = tuple(tuple(point) for point in measured["curve"])
    fields |= {name: math.nan for name in _UNKNOWN_OF_FOREIGN if measured[name] is None}
    found = Measured(**fields)
    if before != key:
        changed = ", ".join(name for name in key if before.get(name) != key[name])
        raise CheckpointError(
            f"{path} was measured with another {changed}; give the options that the comparison began with, or "
            "another --out"
        )
    return found, rule


def _line(one: Measured) -> str:
    met = "" if one.met is not False else f"; BUDGET MISSED: {one.share_of_budget:.3f} of it"
    if math.isnan(one.training_bytes):
        return f"{one.name}: {one.bits_per_byte:.4f} bits per byte; {one.bytes_per_second_plain:,.0f} bytes/s"
    return (
        f"{one.name}, seed {one.seed}: {one.bits_per_byte:.4f} bits per byte after {size(one.training_bytes)}, "
        f"{one.training_flops:.3g} operations, {one.training_seconds:.0f} s; "
        f"{one.bytes_per_second_plain:,.0f} bytes/s, with drafts {one.bytes_per_second_speculative:,.0f}{met}"
    )


def _machine() -> str:
    return f"{machine.processor_name()}, {machine.cores().usable} cores, torch {torch.__version__}, {platform.system()}"
