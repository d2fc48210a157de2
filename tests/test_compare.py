"""A comparison keeps its budget, counts every byte, goes on where it was, and says what the data support."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bytelm.arms import Plan, parse_arms, parse_budgets
from bytelm.cli.app import run
from bytelm.compare import Comparison, _read, compare
from bytelm.comparison_facts import against, arms_of, as_json, sentences, slopes
from bytelm.comparison_measure import Measured, selection_score
from bytelm.comparison_page import write_comparison_report
from bytelm.comparison_text import Parts, divide
from bytelm.config import RunConfig
from bytelm.data.ingest import ingest
from bytelm.data.shards import Corpus
from bytelm.engine.library import load_library
from bytelm.errors import CheckpointError, ConfigError, CorpusError, GenerationError

TEXT = b"".join(b"the %d little words of line %d, and some more.\n" % (number % 7, number) for number in range(600))
SETTINGS = (
    "model.d_model=32",
    "model.d_ff=48",
    "model.layers=2",
    "data.window_bytes=128",
    "train.batch_windows=2",
    "train.log_every_steps=5",
    "train.validate_every_steps=10",
    "train.validation_bytes=400",
    "train.sample_bytes=0",
    "train.precision=float32",
)
REQUIRED = (
    "name", "bits_per_byte", "parameters", "training_flops", "training_seconds", "training_bytes",
    "bytes_per_second_plain", "bytes_per_second_speculative", "parameters_embedding", "parameters_ngram_tables",
    "parameters_inner",
)  # fmt: skip


def plan_of(arms: str, budget: str, *, seeds: int = 1) -> Plan:
    return Plan(
        arms=tuple(parse_arms(arms)),
        budgets=parse_budgets(budget),
        seeds=tuple(range(seeds)),
        base=RunConfig.build("tiny", SETTINGS),
        scored_bytes=600,
        stride_bytes=64,
        prompts=1,
        generated_bytes=16,
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    sources = folder / "sources"
    sources.mkdir()
    for number in range(24):
        (sources / f"{number}.txt").write_bytes(TEXT[number * 1000 : number * 1000 + 3000])
    ingest([sources], folder / "corpus", validation_fraction=0.1)
    return folder / "corpus"


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path, Plan]:
    out = tmp_path_factory.mktemp("comparison") / "out"
    plan = plan_of("byte:k=1,byte:k=3,bpe:300:k=1", "flops:1.5e9", seeds=2)
    return compare(plan, corpus, out), out, plan


def test_every_arm_and_seed_is_measured_over_all_bytes(finished: tuple[Comparison, Path, Plan]) -> None:
    comparison, _, plan = finished
    assert [(one.name, one.seed) for one in comparison.measured] == [
        (arm.name, seed) for arm in plan.arms for seed in plan.seeds
    ]
    assert not comparison.failed
    assert len({one.scored_bytes for one in comparison.measured}) == 1
    for one in comparison.measured:
        assert (one.scored_ids < one.scored_bytes) == (one.name == "bpe:300:k=1")
        assert 0 < one.bits_per_byte < 9
        assert min(one.bytes_per_second_plain, one.bytes_per_second_speculative, one.training_bytes_per_second) > 0
        assert one.curve[-1][0] == one.training_bytes
        assert one.training_memory_bytes > 4 * one.parameters
        assert one.parameters == one.parameters_embedding + one.parameters_ngram_tables + one.parameters_inner


def test_bytes_and_ids_are_decoded_by_the_same_program(finished: tuple[Comparison, Path, Plan]) -> None:
    comparison, out, _ = finished
    decoders = {one.decoder for one in comparison.measured}
    assert len(decoders) == 1
    assert ("the engine" in decoders.pop()) == (load_library() is not None)
    facts = write_comparison_report(comparison, out, made_by="bytelm compare")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "decoded by" in page
    assert all(arm["decoder"] in page for arm in facts["arms"])
    torch_too = tuple(replace(one, decoder=f"torch{one.seed}") for one in comparison.measured[:1])
    said = sentences(replace(comparison, measured=torch_too + comparison.measured[2:]))
    assert any("Not all arms were decoded by the same program" in sentence for sentence in said)


def test_ngrams_are_for_bytes_and_ids(corpus: Path, tmp_path: Path) -> None:
    tables = "model.ngram_sizes=[2,3,4,5]:model.ngram_rows=1024:model.ngram_width=8"
    plan = plan_of(f"byte:k=2:{tables},bpe:300:k=1:{tables}", "bytes:4k")
    comparison = compare(plan, corpus, tmp_path / "out")
    assert not comparison.failed
    for one in comparison.measured:
        assert one.met
        assert one.parameters_ngram_tables == 4 * 1024 * 8
        assert 0 < one.bits_per_byte < 9
        assert one.bytes_per_second_speculative > 0
    assert len({one.decoder for one in comparison.measured}) == 1


def test_the_budget_was_kept_and_is_checked_afterwards(finished: tuple[Comparison, Path, Plan]) -> None:
    comparison, _, plan = finished
    for one in comparison.measured:
        assert one.met
        assert one.share_of_budget == pytest.approx(1.0, abs=one.tolerance)
        assert one.training_flops == pytest.approx(plan.budgets[0].amount, rel=0.1)
        assert one.training_flops == pytest.approx(one.flops_per_byte_training * one.training_bytes)


@pytest.fixture(scope="module")
def several(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path, Plan]:
    out = tmp_path_factory.mktemp("several") / "out"
    plan = plan_of("byte:k=1,bpe:300:k=1", "bytes:8k,4k", seeds=2)
    return compare(plan, corpus, out), out, plan


def test_every_arm_is_trained_at_every_budget(several: tuple[Comparison, Path, Plan]) -> None:
    comparison, out, plan = several
    assert [(one.name, one.budget, one.seed) for one in comparison.measured] == [
        (arm.name, amount, seed) for arm in plan.arms for amount in (4000.0, 8000.0) for seed in (0, 1)
    ]
    for one in comparison.measured:
        assert one.met
        assert one.training_bytes == pytest.approx(one.budget, rel=0.05)
    facts = write_comparison_report(comparison, out, made_by="bytelm compare")
    assert facts["budget"] == {"kind": "bytes", "amounts": [4000.0, 8000.0]}
    assert [(arm["name"], arm["budget"]) for arm in facts["arms"]] == [
        (arm.name, amount) for arm in plan.arms for amount in (4000.0, 8000.0)
    ]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<h2>All axes at bytes:4000</h2>" in page
    assert "<h2>All axes at bytes:8000</h2>" in page
    assert "<h2>Bits per byte over the budget</h2>" in page
    assert "budgets.png" in facts["figures"]
    for arm, slope in zip(plan.arms, facts["slopes"], strict=True):
        small, large = (one for one in facts["arms"] if one["name"] == arm.name)
        assert slope["name"] == arm.name
        assert slope["bits_per_byte_per_doubling"] == pytest.approx(large["bits_per_byte"] - small["bits_per_byte"])
        assert len(slope["by_seed"]) == 2


def test_a_budget_may_be_added_and_nothing_is_made_again(
    several: tuple[Comparison, Path, Plan], corpus: Path, tmp_path: Path
) -> None:
    plan = plan_of("byte:k=1", "bytes:4k")
    compare(plan, corpus, tmp_path / "out")
    told: list[str] = []
    both = compare(replace(plan, budgets=parse_budgets("bytes:4k,8k")), corpus, tmp_path / "out", tell=told.append)
    assert [line for line in told if line.endswith("training")] == ["byte:k=1, seed 0, bytes:8000: training"]
    wanted = [one.bits_per_byte for one in several[0].measured if (one.name, one.seed) == ("byte:k=1", 0)]
    assert [one.bits_per_byte for one in both.measured] == wanted


def test_the_folder_of_an_older_version_is_refused_in_a_line(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text(json.dumps({"budget": {"kind": "bytes", "amount": 4000}, "arms": []}))
    with pytest.raises(CheckpointError, match=r"comparison\.json is of format 1, .* give another --out"):
        compare(plan_of("byte:k=1", "bytes:4k"), corpus, tmp_path)
    assert not (tmp_path / "runs").exists()


def test_a_finished_comparison_is_read_and_not_made_again(
    finished: tuple[Comparison, Path, Plan], corpus: Path
) -> None:
    comparison, out, plan = finished
    told: list[str] = []
    assert compare(plan, corpus, out, tell=told.append).measured == comparison.measured
    assert not any("training" in line for line in told)
    with pytest.raises(CheckpointError, match="was measured with another prompts"):
        compare(replace(plan, prompts=2), corpus, out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits_per_byte": None}, "measured.bits_per_byte: null is no number"),
        ({"bits_per_byte": "low"}, 'measured.bits_per_byte: "low" is no number'),
        ({"scored_ids": -1}, "measured.scored_ids: -1 is not within"),
        ({"bits_per_byte_by_head": 3}, "measured.bits_per_byte_by_head: 3 is no list"),
        ({"curve": [[1, 2]]}, r"measured.curve\[0\]: it has 2 values"),
        ({"more": 3}, "measured.more: it is unknown here"),
        (None, "has more than 32 levels"),
    ],
)
def test_a_measurement_that_somebody_edited_is_one_line(
    finished: tuple[Comparison, Path, Plan], tmp_path: Path, change: dict[str, Any] | None, message: str
) -> None:
    comparison, out, _ = finished
    whole = json.loads(next((out / "measured").iterdir()).read_bytes())
    path = tmp_path / "measured.json"
    path.write_text("[" * 10_000 if change is None else json.dumps({**whole, "measured": whole["measured"] | change}))
    with pytest.raises(CheckpointError, match=rf"measured\.json: .*{message}.*; remove it") as error:
        _read(path, whole["key"])
    assert "\n" not in str(error.value)
    path.write_text(json.dumps(whole))
    found = _read(path, whole["key"])
    assert found is not None
    assert found[0] in comparison.measured


def test_its_report_is_one_file_with_everything(finished: tuple[Comparison, Path, Plan]) -> None:
    comparison, out, plan = finished
    facts = write_comparison_report(comparison, out, made_by="bytelm compare")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=['\"]?https?:|@import|<script", page)
    assert all(arm.name in page for arm in plan.arms)
    assert "<b>= training operations</b>" in page
    assert "<h2>Against byte:k=1</h2>" in page
    assert json.loads((out / "comparison.json").read_text(encoding="utf-8")) == json.loads(json.dumps(facts))
    assert [arm["name"] for arm in facts["arms"]] == [arm.name for arm in plan.arms]
    for arm in facts["arms"]:
        assert set(REQUIRED) <= set(arm)
        assert len(arm["runs"]) == 2
    assert {path.name for path in out.glob("*.png")} == set(facts["figures"])
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in facts["figures"])


def test_validations_read_other_text_than_the_published_scores(
    finished: tuple[Comparison, Path, Plan], corpus: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    comparison, out, plan = finished
    parts = divide(Corpus.open(corpus))
    assert comparison.parts == parts
    assert parts.apart
    read: list[bytes] = []
    monkeypatch.setattr("bytelm.compare.train", lambda *_, held_out, **__: read.extend(held_out) or iter([]))
    with pytest.raises(AssertionError):  # the stand-in trains nothing
        compare(replace(plan, arms=plan.arms[:1]), corpus, tmp_path)
    final = parts.final(Corpus.open(corpus), limit_bytes=1 << 20, window_bytes=128)
    assert read
    assert not any(piece in document for piece in read for document in final)
    assert all(one.scored_bytes <= parts.final_bytes for one in comparison.measured)
    facts = write_comparison_report(comparison, out, made_by="bytelm compare")
    assert facts["text"] == {
        "selection_bytes": parts.selection_bytes, "final_bytes": parts.final_bytes, "apart": True,
    }  # fmt: skip
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"{parts.selection_bytes:,} held-out bytes" in page
    assert f"{parts.final_bytes:,} others" in page


def test_a_split_of_one_document_is_told_in_a_line(
    finished: tuple[Comparison, Path, Plan],
) -> None:
    parts = Parts(selected=frozenset(), selection_bytes=600, final_bytes=600, apart=False)
    said = sentences(replace(finished[0], parts=parts))
    assert any("is one document, which is not torn" in sentence for sentence in said)


def test_what_was_stopped_goes_on_as_if_it_had_not_stopped(corpus: Path, tmp_path: Path) -> None:
    plan = plan_of("byte:k=2,bpe:300:k=1", "bytes:10k")
    straight = compare(plan, corpus, tmp_path / "straight")
    stopped = compare(plan, corpus, tmp_path / "stopped", should_stop=after(50))
    assert stopped.stopped
    assert [one.name for one in stopped.measured] == ["byte:k=2"]
    assert not as_json(stopped)["finished"]
    told: list[str] = []
    resumed = compare(plan, corpus, tmp_path / "stopped", tell=told.append)
    assert [line for line in told if line.endswith("training")] == ["bpe:300:k=1, seed 0, bytes:10000: training"]
    assert [one.bits_per_byte for one in resumed.measured] == [one.bits_per_byte for one in straight.measured]


def after(steps: int) -> Callable[[], bool]:
    asked = iter(range(10_000))
    return lambda: next(asked) >= steps


def test_an_arm_that_fails_leaves_what_the_others_gave(corpus: Path, tmp_path: Path) -> None:
    plan = plan_of("byte:k=1,run=nowhere", "bytes:4k")
    comparison = compare(plan, corpus, tmp_path / "out")
    assert [one.name for one in comparison.measured] == ["byte:k=1"]
    assert [one.name for one in comparison.failed] == ["run=nowhere"]
    write_comparison_report(comparison, tmp_path / "out", made_by="bytelm compare")
    assert "nowhere does not exist" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_run_that_is_there_joins_as_an_arm(
    finished: tuple[Comparison, Path, Plan], corpus: Path, tmp_path: Path
) -> None:
    _, out, _ = finished
    run = next(path for path in (out / "runs").iterdir() if path.name.startswith("byte"))
    comparison = compare(plan_of(f"byte:k=1,run={run}", "bytes:4k"), corpus, tmp_path / "out")
    joined = comparison.measured[1]
    assert (joined.trained, joined.met) == (False, None)
    assert joined.bits_per_byte > 0


def test_what_cannot_be_is_refused_before_anything_is_trained(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot meet the budget"):
        compare(plan_of("byte:k=1,byte:k=8", "flops:1e6"), corpus, tmp_path / "out")
    assert not (tmp_path / "out" / "runs").exists()


def test_a_corpus_that_holds_nothing_out_is_refused(corpus: Path, tmp_path: Path) -> None:
    ingest([corpus.parent / "sources"], tmp_path / "corpus", validation_fraction=0.0)
    with pytest.raises(CorpusError, match="holds nothing out to score"):
        compare(plan_of("byte:k=1", "bytes:4k"), tmp_path / "corpus", tmp_path / "out")


# Rate and batch of each arm


def test_rate_and_batch_are_chosen_on_the_selection_part_and_a_search_goes_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of("byte:k=1,bpe:300:k=1:train.learning_rate=0.002", "bytes:12k")
    plan = replace(plan, tune_arms=True, base=plan.base.with_changes(["train.batch_windows=1"]))
    read: list[bytes] = []

    def score(run: Path, plan: Plan, text: list[bytes]) -> float:
        read.extend(text)
        return selection_score(run, plan, text)

    monkeypatch.setattr("bytelm.compare.selection_score", score)
    stopped = compare(plan, corpus, tmp_path / "out", should_stop=after(35))  # in the second training
    assert stopped.stopped
    assert not stopped.measured
    told: list[str] = []
    comparison = compare(plan, corpus, tmp_path / "out", tell=told.append)
    first, second = comparison.tuned
    assert len(first.trials) == 4
    assert {trial.learning_rate for trial in first.trials} == {
        plan.base.train.learning_rate * factor for factor in (0.5, 1.0, 2.0)
    }
    assert [(trial.learning_rate, trial.batch_windows) for trial in second.trials] == [
        (0.002, 1), (0.002, 2),
    ]  # fmt: skip
    assert sum(": trying" in line for line in told) == 5, "a training of the search was made again"
    for tuned, one in zip(comparison.tuned, comparison.measured, strict=True):
        folder = next((tmp_path / "out" / "runs").glob(f"{one.name.partition(':')[0]}*"))
        run = RunConfig.from_toml((folder / "config.toml").read_text(encoding="utf-8"))
        assert (run.train.learning_rate, run.train.batch_windows) == (tuned.learning_rate, tuned.batch_windows)
        scores = [trial.bits_per_byte for trial in tuned.trials if trial.bits_per_byte is not None]
        chosen = (tuned.learning_rate, tuned.batch_windows)
        assert min(scores) == next(
            trial.bits_per_byte for trial in tuned.trials if (trial.learning_rate, trial.batch_windows) == chosen
        )
    final = comparison.parts.final(Corpus.open(corpus), limit_bytes=1 << 20, window_bytes=128)
    assert read
    assert not any(piece in document for piece in read for document in final)
    facts = write_comparison_report(comparison, tmp_path / "out", made_by="bytelm compare")
    assert [one["name"] for one in facts["tuning"]] == [arm.name for arm in plan.arms]
    assert [len(one["trials"]) for one in facts["tuning"]] == [4, 2]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<h2>How learning rate and batch were chosen</h2>" in page
    assert all(f"{trial.bits_per_byte:.4f}" in page for one in comparison.tuned for trial in one.trials)


def test_an_arm_whose_search_gives_no_score_leaves_what_the_others_gave(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = "train.learning_rate=0.002:train.batch_windows=1"
    plan = replace(plan_of(f"byte:k=2:train.learning_rate=0.003,byte:k=1:{fixed}", "bytes:12k,13k"), tune_arms=True)
    plan = replace(plan, base=plan.base.with_changes(["train.batch_windows=1"]))

    def score(*_: object) -> float:
        raise GenerationError("it is not finite")

    monkeypatch.setattr("bytelm.compare.selection_score", score)
    comparison = compare(plan, corpus, tmp_path / "out")
    assert [(one.name, one.budget) for one in comparison.failed] == [
        (plan.arms[0].name, 12_000.0), (plan.arms[0].name, 13_000.0),
    ]  # fmt: skip
    assert all("gave a score: it is not finite" in one.reason for one in comparison.failed)
    assert [(one.name, one.budget) for one in comparison.measured] == [
        (plan.arms[1].name, 12_000.0), (plan.arms[1].name, 13_000.0),
    ]  # fmt: skip
    assert [(one.name, one.trials) for one in comparison.tuned] == [(plan.arms[1].name, ())]
    write_comparison_report(comparison, tmp_path / "out", made_by="bytelm compare")
    assert "set by the arm" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_search_that_cannot_be_is_refused_before_anything_is_trained(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(budget: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            compare(replace(plan_of("byte:k=1", budget), tune_arms=True), corpus, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out" / "runs").exists()
        assert not list((tmp_path / "out").glob("tuning/*"))

    refused("bytes:4k,40k", "--tune-arms has bytes:1000 for each training: the arm byte:k=1 cannot meet the budget")
    refused("parameters:60k", "a budget of parameters has no share")
    one = Parts(selected=frozenset(), selection_bytes=600, final_bytes=600, apart=False)
    monkeypatch.setattr("bytelm.compare.divide", lambda _: one)
    refused("bytes:40k", "the validation split is one document, which is not torn")


# What the data support


def comparison_of(values: dict[str, list[float]], plan: Plan, sample: Measured) -> Comparison:
    """One run for each arm and seed at the smallest budget, with these bits per byte."""
    arms = parse_arms(",".join(values))
    amount = plan.budgets[0].amount
    runs = tuple(
        replace(sample, name=arm.name, seed=seed, budget=amount, bits_per_byte=bits, met=True, load_before=0.5)
        for arm, found in zip(arms, values.values(), strict=True)
        for seed, bits in enumerate(found)
    )
    return Comparison(
        plan=replace(plan, arms=tuple(arms)), place="corpus", fingerprint="f", measured=runs, failed=(),
        tuned=(), rule="rule", parts=Parts(selected=frozenset(), selection_bytes=100, final_bytes=600, apart=True),
        machine="this one", cores=2, stopped=False,
    )  # fmt: skip


def test_only_seeds_that_lie_apart_make_one_arm_better(finished: tuple[Comparison, Path, Plan]) -> None:
    done, _, plan = finished
    values = {"byte:k=1": [2.0, 2.1], "byte:k=8": [2.05, 2.2], "bpe:300:k=1": [2.3, 2.4]}
    best, *_ = sentences(comparison_of(values, plan, done.measured[0]))
    assert "byte:k=1 has the lowest mean" in best
    assert "every seed of it is below every seed of bpe:300:k=1 (2.350" in best
    assert "the seeds do not tell it apart from byte:k=8 (2.125" in best


def test_one_seed_supports_no_ranking(finished: tuple[Comparison, Path, Plan]) -> None:
    done, _, plan = finished
    best, *_ = sentences(comparison_of({"byte:k=1": [2.0], "byte:k=8": [3.0]}, plan, done.measured[0]))
    assert "with one seed it cannot be told whether any difference is more than chance" in best


def test_an_arm_that_missed_the_budget_is_left_out(finished: tuple[Comparison, Path, Plan]) -> None:
    done, _, plan = finished
    comparison = comparison_of({"byte:k=1": [2.0, 2.1], "byte:k=8": [1.0, 1.1]}, plan, done.measured[0])
    missed = tuple(replace(one, met=one.name != "byte:k=8") for one in comparison.measured)
    said = sentences(replace(comparison, measured=missed))
    assert said[0].startswith("Fewer than two arms were trained within")
    assert "Left out of these sentences, having missed the budget: byte:k=8." in said
    busy = tuple(replace(one, load_before=7.0) for one in comparison.measured)
    assert any("had other work" in sentence for sentence in sentences(replace(comparison, measured=busy)))


def test_an_arm_is_set_against_another_seed_by_seed(finished: tuple[Comparison, Path, Plan]) -> None:
    done, _, plan = finished
    values = {"byte:k=1": [2.0, 2.5], "byte:k=8": [2.25, 2.0, 9.0]}
    first, other = arms_of(comparison_of(values, plan, done.measured[0]))
    assert against(other, first, "bits_per_byte", lambda one, two: one - two) == [0.25, -0.5]


def test_an_arm_over_its_seeds_has_mean_and_spread(finished: tuple[Comparison, Path, Plan]) -> None:
    done, _, plan = finished
    one, other = arms_of(comparison_of({"byte:k=1": [2.0, 3.0], "byte:k=8": [1.0]}, plan, done.measured[0]))
    assert (one.mean("bits_per_byte"), one.spread("bits_per_byte")) == (2.5, pytest.approx(0.5**0.5))
    assert other.spread("bits_per_byte") is None


def over_budgets(values: dict[str, list[list[float]]], plan: Plan, sample: Measured) -> Comparison:
    """Runs at 60, 120 … seconds: for each arm a list for each budget, with the bits per byte of each seed."""
    budgets = parse_budgets(
        "seconds:" + ",".join(str(60 << place) for place in range(len(next(iter(values.values())))))
    )
    first = comparison_of({name: of_budget[0] for name, of_budget in values.items()}, plan, sample)
    runs = tuple(
        replace(one, budget=budget.amount, bits_per_byte=values[one.name][place][one.seed])
        for one in first.measured
        for place, budget in enumerate(budgets)
    )
    return replace(first, plan=replace(first.plan, budgets=budgets), measured=runs)


def test_a_slope_is_what_a_doubling_changes_seed_by_seed(finished: tuple[Comparison, Path, Plan]) -> None:
    done, _, plan = finished
    values = {"byte:k=1": [[4.0, 4.2], [3.5, 3.6], [3.0, 3.0]], "byte:k=8": [[3.0, 3.0], [3.0, 3.0], [3.0, 3.0]]}
    comparison = over_budgets(values, plan, done.measured[0])
    steep, flat = slopes(comparison)
    assert steep.by_seed == pytest.approx({0: -0.5, 1: -0.6})
    assert (steep.mean, flat.mean) == (pytest.approx(-0.55), pytest.approx(0.0))
    missed = tuple(replace(one, met=one.name != "byte:k=8") for one in comparison.measured)
    assert [slope.name for slope in slopes(replace(comparison, measured=missed))] == ["byte:k=1"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"byte:k=1": [[3.0, 3.1], [2.0, 2.1]], "byte:k=8": [[3.5, 3.6], [2.5, 2.6]]},
         "The order of the mean bits per byte is the same at all budgets: byte:k=1, byte:k=8."),
        ({"byte:k=1": [[3.0, 3.1], [2.5, 2.6]], "byte:k=8": [[3.5, 3.6], [2.0, 2.1]]},
         "The order of byte:k=1 and byte:k=8 changes; lower mean: byte:k=1 at seconds:60, byte:k=8 at "
         "seconds:120; all seeds agree at each budget."),
        ({"byte:k=1": [[3.0, 3.6], [2.5, 2.6]], "byte:k=8": [[3.5, 3.6], [2.0, 2.1]]},
         "byte:k=8 at seconds:120; the seeds do not separate the two at every budget."),
    ],
)  # fmt: skip
def test_a_sentence_says_whether_the_order_changes_between_budgets(
    finished: tuple[Comparison, Path, Plan], values: dict[str, list[list[float]]], said: str
) -> None:
    done, _, plan = finished
    found = sentences(over_budgets(values, plan, done.measured[0]))
    assert any(sentence.endswith(said) for sentence in found)
    assert any(sentence.startswith("At an equal 60 seconds of training") for sentence in found)
    assert any(sentence.startswith("At an equal 120 seconds of training") for sentence in found)


def test_speeds_are_compared_where_the_faster_arm_is_as_good(finished: tuple[Comparison, Path, Plan]) -> None:
    done, _, plan = finished
    values = {"byte:k=1": [2.0, 2.1], "byte:k=8": [2.1, 2.2], "bpe:300:k=1": [2.05, 2.3]}
    speeds = {"byte:k=1": 100.0, "byte:k=8": 50.0, "bpe:300:k=1": 10.0}
    comparison = comparison_of(values, plan, done.measured[0])
    runs = tuple(
        replace(one, bytes_per_second_plain=1.0, bytes_per_second_speculative=speeds[one.name])
        for one in comparison.measured
    )
    said = [sentence for sentence in sentences(replace(comparison, measured=runs)) if "at least as good" in sentence]
    assert len(said) == 1
    assert said[0].endswith("byte:k=1 than byte:k=8 (100 against 50 bytes/s).")
    slow = tuple(replace(one, bytes_per_second_speculative=7.0) for one in runs)
    assert any("no arm is both" in sentence for sentence in sentences(replace(comparison, measured=slow)))


# Commands


def test_the_commands_print_one_json_object(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [word for change in SETTINGS for word in ("--set", change)]
    code = run([
        "ablate", "--corpus", str(corpus), "--out", str(tmp_path / "out"), "--budget", "bytes:4k", "--heads", "2",
        "--seeds", "1", "--scored-bytes", "500", "--prompts", "1", "--max-bytes", "8", "--json", *options,
    ])  # fmt: skip
    assert code == 0
    facts = json.loads(capsys.readouterr().out)
    assert [arm["name"] for arm in facts["arms"]] == ["byte:k=1", "byte:k=2"]
    assert facts["finished"]
    for words, message in (
        (["--arms", "words"], "is no arm"),
        (["--budget", "much"], "is no budget"),
        (["--budget", "bytes:4k,seconds:9"], "has two kinds, bytes and seconds"),
        (["--budget", "bytes:4k,4000"], "names bytes:4000 twice"),
        (["--budget", "bytes:4k,"], "'bytes:' is no budget"),
        (["--budget", "bytes:0"], "is no budget"),
        (["--budget", ""], "is no budget"),
        (["--arms", "bpe:5"], "there is no vocabulary"),
    ):
        given = {"--arms": "byte:k=1", "--budget": "bytes:4k", "--corpus": str(corpus), "--out": str(tmp_path / "x")}
        given |= dict([words])
        assert run(["compare", *(word for pair in given.items() for word in pair)]) == 2
        assert message in capsys.readouterr().err
