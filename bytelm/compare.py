"""Comparison: train all arms at equal budgets with several seeds, measure them alike, and report every axis.

Runs follow one another, the seeds outermost, so that a slow drift of the machine meets all arms alike. A measurement
is kept as soon as it is made; what was interrupted goes on where it was, run by run, and inside a run from its last
checkpoint. After training each run is asked whether it kept the budget, from what it did and not from what was planned.
"""

import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

import bytelm
from bytelm import machine
from bytelm.arms import Arm, Budget, Plan, settings_of
from bytelm.bpe import BPEVocab
from bytelm.checkpoint import checkpoints
from bytelm.comparison_measure import (
    KEPT,
    UNKNOWN_OF_FOREIGN,
    Measured,
    known,
    measure,
    measure_foreign,
    selection_score,
    with_counted_steps,
)
from bytelm.comparison_text import Parts, divide
from bytelm.comparison_tuning import BATCH, RATE, Trial, Tuned, candidates, search, tuning_budget
from bytelm.config import RunConfig
from bytelm.corpora import Corpora, open_corpora
from bytelm.errors import (
    BytelmError,
    CheckpointError,
    ConfigError,
    CorpusError,
    GenerationError,
    TrainingError,
)
from bytelm.events import Finished
from bytelm.files import refusals_named, write_file
from bytelm.own_files import ANYTHING, TEXT, WHOLE, Fields, Nullable, Number, read_json, read_small
from bytelm.run_curves import size
from bytelm.train import train
from bytelm.vocab import BYTE_VOCABULARY, Vocab
from bytelm.vocabularies import learn_vocabulary

PATH_OF_RESULTS: Final = "comparison.json"
FORMAT: Final = 2
"""Version of a comparison's folder: 1 had one budget, and scored the text that validations had read."""
_RUNS: Final = "runs"
_MEASURED: Final = "measured"
_TUNING: Final = "tuning"
_VOCABULARIES: Final = "vocabularies"
_VOCABULARY_BYTES: Final = 64 << 20
_KEPT_TRIAL: Final = Fields(
    {
        "key": Fields(others=ANYTHING),
        "trial": Fields(
            {
                "learning_rate": Number(0.0),
                "batch_windows": WHOLE,
                "bits_per_byte": Nullable(Number(0.0)),
                "reason": TEXT,
            }
        ),
    }
)
"""Form of a training of a search as it is kept."""
ONE_DOCUMENT: Final = (
    "The validation split is one document, which is not torn: validations during training and the final scores use the "
    "same text."
)
"""Told where the held-out text cannot be divided."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A run that gave no measurement; its budget is None where it was to be measured as found."""

    name: str
    seed: int
    budget: float | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that is known by now.

    Attributes:
        plan: What was asked for.
        place: Folder or address of the corpus.
        fingerprint: Fingerprint of the corpus.
        measured: Runs in the order of the plan.
        failed: Runs that could not be measured.
        tuned: Searched values and the choice for each arm; empty without ``--tune-arms``.
        parts: The two parts of the held-out text: one for validations and search, one for the scores in ``measured``.
        rule: Context that each scored byte had, in words.
        machine: Processor, cores and versions, in words.
        cores: Number of usable cores.
        stopped: Whether the caller ended it early.
    """

    plan: Plan
    place: str | list[str]
    fingerprint: str | list[str]
    measured: tuple[Measured, ...]
    failed: tuple[Failed, ...]
    tuned: tuple[Tuned, ...]
    parts: Parts
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
        out: Folder of the comparison, made if missing. One that is there goes on; arms, seeds and budgets may be
            added.
        tell: Is told in a line what happens.
        should_stop: Asked between the steps of a training; True saves and ends.

    Raises:
        ConfigError: An arm is impossible or cannot meet a budget; nothing is trained then.
        CorpusError: The corpus is missing or damaged, or holds nothing out.
        CheckpointError: ``out`` holds something else, or is of another version.
        StorageError: The disk refuses.
    """
    corpora = open_corpora(corpus, plan.base)
    if not corpora.corpora[0].raw_bytes("validation"):
        raise CorpusError(f"{corpus} holds nothing out to score; ingest it with --validation-fraction 0.01")
    _check_format(out)
    with refusals_named(out):
        (out / _MEASURED).mkdir(parents=True, exist_ok=True)
        (out / _TUNING).mkdir(exist_ok=True)
        (out / _VOCABULARIES).mkdir(exist_ok=True)
    parts = divide(corpora.corpora[0])
    if not parts.apart:
        tell(ONE_DOCUMENT)
    work = _Work(
        plan=plan,
        corpora=corpora,
        corpus=corpus,
        out=out,
        vocabularies=_vocabularies(plan, corpora, out, tell),
        parts=parts,
        held_out=parts.final(
            corpora.corpora[0], limit_bytes=plan.scored_bytes, window_bytes=plan.base.data.window_bytes
        ),
        should_stop=should_stop,
    )
    runs = _runs(work, {})  # refuses what cannot be, before anything is trained
    measured: dict[_Run, Measured] = {}
    failed: list[Failed] = []
    tuned: dict[str, Tuned] = {}
    rule, stopped = "", False
    if plan.tune_arms:
        _check_tuning(work)
        for arm in plan.arms:
            if arm.run is not None:
                continue
            try:
                found = _tune(work, arm, tell)
            except TrainingError as error:
                tell(str(error))
                failed += [
                    Failed(name=arm.name, seed=run.seed, budget=run.amount, reason=str(error))
                    for run in runs
                    if run.arm == arm
                ]
                continue
            if found is None:
                stopped = True
                break
            tuned[arm.name] = found
            tell(f"{arm.name}: chosen {', '.join(found.changes)}")
        runs = [run for run in _runs(work, tuned) if run.config is None or run.arm.name in tuned]
    for run in () if stopped else runs:
        path = out / _MEASURED / f"{run.folder}.json"
        key = _key(work, run)
        found = _read(path, key)
        if found is None:
            tell(f"{run}: {'measuring' if run.config is None else 'training'}")
            try:
                found = _run(work, run)
            except BytelmError as error:
                failed.append(Failed(name=run.arm.name, seed=run.seed, budget=run.amount, reason=str(error)))
                tell(f"{run}: {error}")
                continue
            if found is None:
                stopped = True
                break
            kept = {"key": key, "measured": known(found[0]), "rule": found[1]}
            content = json.dumps(kept, indent=1, allow_nan=False)
            write_file(path, content.encode())
        measured[run], rule = found
        tell(f"{run}: {_line(found[0])}")
    return Comparison(
        plan=plan,
        place=corpora.place,
        fingerprint=corpora.fingerprint,
        measured=tuple(sorted(measured.values(), key=lambda one: _place(plan, one))),
        failed=tuple(failed),
        tuned=tuple(tuned.values()),
        parts=work.parts,
        rule=rule,
        machine=_machine(),
        cores=machine.cores().usable,
        stopped=stopped,
    )


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What all runs of a comparison share."""

    plan: Plan
    corpora: Corpora
    corpus: str | Path
    out: Path
    vocabularies: Mapping[str, Vocab]
    parts: Parts
    held_out: Sequence[bytes]
    should_stop: Callable[[], bool]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """An arm with a seed and a budget, and its settings; without the latter two where it is measured as found."""

    arm: Arm
    seed: int
    budget: Budget | None
    config: RunConfig | None

    @property
    def amount(self) -> float | None:
        return None if self.budget is None else self.budget.amount

    @property
    def folder(self) -> str:
        """A name for files."""
        budget = "" if self.budget is None else f"-{self.budget.kind}-{self.budget.written}"
        return f"{self.arm.folder}-{self.seed}{budget}"

    def __str__(self) -> str:
        return self.arm.name if self.budget is None else f"{self.arm.name}, seed {self.seed}, {self.budget}"


def _runs(work: _Work, tuned: Mapping[str, Tuned]) -> list[_Run]:
    """All runs in the order in which they are made, with what was chosen: the seeds outermost, the arms innermost.

    Raises:
        ConfigError: An arm is impossible or cannot meet a budget.
    """
    plan = work.plan
    found = []
    for index, seed in enumerate(plan.seeds):
        for number, budget in enumerate(plan.budgets):
            for arm in plan.arms:
                if arm.run is None:
                    ratio = work.vocabularies[arm.name].bytes_per_id
                    chosen = tuned[arm.name].changes if arm.name in tuned else ()
                    whole = replace(arm, changes=arm.changes + chosen)
                    config = settings_of(whole, plan.base, budget, bytes_per_id=ratio, seed=seed)
                    found.append(_Run(arm=arm, seed=seed, budget=budget, config=config))
                elif index == number == 0:
                    found.append(_Run(arm=arm, seed=seed, budget=None, config=None))
    return found


def _place(plan: Plan, one: Measured) -> tuple[int, int, int]:
    """Where a run stands in the report: by arm, budget and seed."""
    amounts = [budget.amount for budget in plan.budgets]
    budget = 0 if one.budget is None else amounts.index(one.budget)
    return [arm.name for arm in plan.arms].index(one.name), budget, one.seed


def _check_format(out: Path) -> None:
    """Refuse the folder of a comparison that another version of bytelm made."""
    path = out / PATH_OF_RESULTS
    if path.is_file():
        found = read_json(path, Fields(others=ANYTHING), remedy="give another --out").get("format", 1)
        if found != FORMAT:
            raise CheckpointError(
                f"{path} is of format {found}, and this version of bytelm goes on with format {FORMAT} alone; give "
                "another --out"
            )


def _run(work: _Work, run: _Run) -> tuple[Measured, str] | None:
    """Train where that is to be done, and measure; None where the caller ended it."""
    plan, arm = work.plan, run.arm
    load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if run.config is None or run.budget is None:
        assert arm.run is not None
        if arm.foreign:
            return measure_foreign(plan, arm, arm.run, work.held_out, load_before)
        return measure(plan, arm, arm.run, None, work.corpora, work.held_out, load_before)
    folder = work.out / _RUNS / run.folder
    config = _train(work, arm, run.config, run.budget, folder)
    if config is None:
        return None
    return measure(plan, arm, folder, (config, run.budget), work.corpora, work.held_out, load_before)


def _train(work: _Work, arm: Arm, config: RunConfig, budget: Budget, folder: Path) -> RunConfig | None:
    """Train an arm, or go on with it, and return its settings; None where the caller ended it."""
    vocabulary = work.vocabularies[arm.name]
    config = with_counted_steps(config, vocabulary, work.corpora, budget)
    finished = None
    validation = work.parts.selection(
        work.corpora.corpora[0],
        limit_bytes=config.train.validation_bytes,
        window_bytes=config.data.window_bytes,
    )
    for event in train(
        config,
        work.corpus,
        folder,
        resume="auto",
        should_stop=work.should_stop,
        vocabulary=vocabulary,
        held_out=validation,
    ):
        if isinstance(event, Finished):
            finished = event
    assert finished is not None
    return None if finished.reason == "stopped" else config


def _check_tuning(work: _Work) -> None:
    """Refuse a search that cannot be made, before anything is trained.

    Raises:
        ConfigError: There is no text to choose on, or an arm cannot meet the budget of a search.
    """
    plan = work.plan
    budget = tuning_budget(plan.budgets)
    if not work.parts.apart:
        raise ConfigError(
            "--tune-arms needs held-out text beside that of the scores, and the validation split is one document, "
            "which is not torn; ingest more documents with --validation-fraction, or leave it out"
        )
    for arm in plan.arms:
        if arm.run is None:
            config = _settings_of_trial(work, arm, None)
            for windows in candidates(arm, config.train.learning_rate, config.train.batch_windows)[1]:
                try:
                    _settings_of_trial(work, arm, (config.train.learning_rate, windows))
                except ConfigError as error:
                    raise ConfigError(f"--tune-arms has {budget} for each training: {error}") from None


def _settings_of_trial(work: _Work, arm: Arm, values: tuple[float, int] | None) -> RunConfig:
    """Settings of a training of the search: with a rate and windows, or those of the arm at its first budget."""
    plan = work.plan
    changes, budget = arm.changes, plan.budgets[0]
    if values is not None:
        changes, budget = (*changes, f"{RATE}={values[0]!r}", f"{BATCH}={values[1]}"), tuning_budget(plan.budgets)
    ratio = work.vocabularies[arm.name].bytes_per_id
    return settings_of(replace(arm, changes=changes), plan.base, budget, bytes_per_id=ratio, seed=plan.seeds[0])


def _tune(work: _Work, arm: Arm, tell: Callable[[str], None]) -> Tuned | None:
    """Choose rate and batch of an arm; None where the caller ended it.

    Raises:
        TrainingError: No training of the search gave a score.
    """
    plan, corpus = work.plan, work.corpora.corpora[0]
    window_bytes = plan.base.data.window_bytes
    text = work.parts.selection(corpus, limit_bytes=plan.scored_bytes, window_bytes=window_bytes)

    def ask(rate: float, windows: int) -> Trial | None:
        name = f"{arm.folder}-{rate!r}-{windows}"
        config = _settings_of_trial(work, arm, (rate, windows))
        path = work.out / _TUNING / f"{name}.json"
        key = _key(work, _Run(arm=arm, seed=plan.seeds[0], budget=tuning_budget(plan.budgets), config=config))
        trial = _read_trial(path, key)
        if trial is None:
            tell(f"{arm.name}: trying {RATE}={rate:g}, {BATCH}={windows}")
            folder = work.out / _TUNING / name
            try:
                if _train(work, arm, config, tuning_budget(plan.budgets), folder) is None:
                    return None
                score, reason = selection_score(folder, plan, text), ""
            except (GenerationError, TrainingError) as error:
                score, reason = None, str(error)
            trial = Trial(learning_rate=rate, batch_windows=windows, bits_per_byte=score, reason=reason)
            content = json.dumps({"key": key, "trial": asdict(trial)}, indent=1, allow_nan=False)
            write_file(path, content.encode())
        tell(f"{arm.name}, {RATE}={rate:g}, {BATCH}={windows}: {_score(trial)}")
        return trial

    first = _settings_of_trial(work, arm, None).train
    return search(arm, first.learning_rate, first.batch_windows, ask)


def _score(trial: Trial) -> str:
    return trial.reason if trial.bits_per_byte is None else f"{trial.bits_per_byte:.4f} bits per byte to choose by"


def _read_trial(path: Path, key: Mapping[str, Any]) -> Trial | None:
    """A training of a search that was made before, of just the same."""
    if not path.is_file():
        return None
    saved = read_json(path, _KEPT_TRIAL, remedy="remove it, and go on")
    _check_key(path, saved["key"], key)
    return Trial(**saved["trial"])


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


def _key(work: _Work, run: _Run) -> dict[str, Any]:
    """What a measurement depends on, as JSON has it."""
    plan = work.plan
    return json.loads(
        json.dumps(
            {
                "bytelm": bytelm.__version__,
                "arm": run.arm.name,
                "config": None if run.config is None else run.config.model_dump(mode="json"),
                "run": None if run.arm.run is None else _content(run.arm, run.arm.run),
                "corpus": work.corpora.fingerprint,
                "scored_bytes": plan.scored_bytes,
                "final_bytes": work.parts.final_bytes,
                "stride_bytes": plan.stride_bytes,
                "prompts": plan.prompts,
                "generated_bytes": plan.generated_bytes,
                "selection_bytes": work.parts.selection_bytes,
                "budget": None if run.budget is None else str(run.budget),
            }
        )
    )


def _content(arm: Arm, folder: Path) -> list[str]:
    """What tells one state of a folder from another."""
    if not arm.foreign:
        return [path.name for path in checkpoints(folder)]
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    return [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]


def _read(path: Path, key: Mapping[str, Any]) -> tuple[Measured, str] | None:
    """A measurement that was made before, of just the same."""
    if not path.is_file():
        return None
    saved = read_json(path, KEPT, remedy="remove it, and go on")
    measured, before, rule = saved["measured"], saved["key"], saved["rule"]
    fields: dict[str, Any] = dict(measured)
    fields["bits_per_byte_by_head"] = tuple(measured["bits_per_byte_by_head"])
    fields["curve"] = tuple(tuple(point) for point in measured["curve"])
    fields |= {name: math.nan for name in UNKNOWN_OF_FOREIGN if measured[name] is None}
    found = Measured(**fields)
    _check_key(path, before, key)
    return found, rule


def _check_key(path: Path, before: Mapping[str, Any], key: Mapping[str, Any]) -> None:
    """Refuse what was measured with other settings."""
    if before != key:
        changed = ", ".join(name for name in key if before.get(name) != key[name])
        raise CheckpointError(
            f"{path} was measured with another {changed}; give the options that the comparison began with, or "
            "another --out"
        )


def _line(one: Measured) -> str:
    met = "" if one.met is not False else f"; BUDGET MISSED: {one.share_of_budget:.3f} of it"
    if math.isnan(one.training_bytes):
        return f"{one.bits_per_byte:.4f} bits per byte; {one.bytes_per_second_plain:,.0f} bytes/s"
    return (
        f"{one.bits_per_byte:.4f} bits per byte after {size(one.training_bytes)}, "
        f"{one.training_flops:.3g} operations, {one.training_seconds:.0f} s; "
        f"{one.bytes_per_second_plain:,.0f} bytes/s, with drafts {one.bytes_per_second_speculative:,.0f}{met}"
    )


def _machine() -> str:
    return f"{machine.processor_name()}, {machine.cores().usable} cores, torch {torch.__version__}, {platform.system()}"
