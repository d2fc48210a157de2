"""``bytelm probe`` from nothing to a figure, with models of a few steps."""

import json
from pathlib import Path

import pytest

from bytelm.cli import app
from bytelm.probe import Arm, examples, figure

SMALL = [
    "model.d_model=16", "model.layers=1", "model.attention_heads=2", "model.kv_heads=1", "model.d_ff=16",
    "train.batch_windows=2", "train.steps=2", "train.threads=1", "train.validation_bytes=200",
]  # fmt: skip


def words(name: str, out: Path, *more: str) -> list[str]:
    changes = [word for change in SMALL for word in ("--set", change)]
    return ["probe", name, "--out", str(out), "--heads", "1,2", "--examples", "300", "--limit", "2", *changes, *more]


@pytest.mark.parametrize("name", ["induction", "arithmetic"])
def test_a_probe_is_one_command_and_goes_on_where_it_was(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(words(name, tmp_path / "out", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(arm["heads"], arm["seed"]) for arm in found["arms"]] == [(1, 0), (2, 0)]
    assert all(0.0 <= arm["accuracy"] <= 1.0 for arm in found["arms"])
    kept = json.loads((tmp_path / "out" / "probe.json").read_bytes())
    assert kept["arms"] == found["arms"]
    assert (tmp_path / "out" / "probe.svg").read_text().lstrip().startswith("<")
    assert app.run(words(name, tmp_path / "out", "--json")) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert app.run(words(name, tmp_path / "out", "--examples", "301")) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_numbers_of_heads_that_are_none_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for heads in ("1,x", "0", "2,2"):
        assert app.run(["probe", "induction", "--out", str(tmp_path), "--heads", heads]) == 2
        assert "are no numbers of heads" in capsys.readouterr().err


def test_training_examples_are_always_the_same_and_never_those_of_the_test() -> None:
    lines = list(examples("arithmetic", 50))
    assert lines == list(examples("arithmetic", 50))
    assert all(line.endswith("\n") and line.count("=") == 1 for line in lines)
    assert len(set(examples("induction", 20))) == 20


def test_the_figure_of_arithmetic_has_a_line_for_each_number_of_heads() -> None:
    arms = [
        Arm(heads=heads, seed=seed, facts={"accuracy": 0.5, "by_operations": {"1": 0.9, "2": 0.1 * heads}})
        for heads in (1, 4)
        for seed in (0, 1)
    ]
    drawn = figure("arithmetic", arms)
    assert ">1<" in drawn
    assert ">4<" in drawn
    assert "operations" in drawn
