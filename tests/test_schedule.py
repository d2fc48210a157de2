"""The learning rate over the budget: each schedule against what its paper writes."""

import itertools
import math
import re
from pathlib import Path

import pytest

from bytelm.config import RunConfig, TrainConfig
from bytelm.errors import ConfigError
from bytelm.presets import PRESETS
from bytelm.schedule import budget_spent, learning_rate

TRAIN = TrainConfig(learning_rate=0.01, warmup_fraction=0.1, final_learning_rate_ratio=0.2)
WSD = TrainConfig(
    schedule="wsd", learning_rate=0.01, warmup_fraction=0.1, final_learning_rate_ratio=0.2, decay_fraction=0.3
)


@pytest.mark.parametrize("train", [TRAIN, WSD])
def test_the_rate_starts_at_zero_peaks_after_the_warm_up_and_ends_at_the_final_ratio(train: TrainConfig) -> None:
    assert learning_rate(0.0, train) == 0.0
    assert learning_rate(0.05, train) == pytest.approx(0.005)
    assert learning_rate(0.1, train) == 0.01
    assert learning_rate(1.0, train) == pytest.approx(0.002)


def test_half_way_down_the_cosine_lies_the_mean_of_peak_and_end() -> None:
    assert learning_rate(0.55, TRAIN) == pytest.approx((0.01 + 0.002) / 2)


def test_the_rate_rises_then_falls_without_a_jump() -> None:
    points = [learning_rate(i / 1000, TRAIN) for i in range(1001)]
    peak = points.index(max(points))
    assert peak == 100
    assert all(a < b for a, b in itertools.pairwise(points[: peak + 1]))
    assert all(a > b for a, b in itertools.pairwise(points[peak:]))
    assert max(abs(a - b) for a, b in itertools.pairwise(points)) < 0.00011


def test_a_late_decay_keeps_the_peak_and_then_falls_by_the_square_root() -> None:
    assert {learning_rate(i / 100, WSD) for i in range(10, 71)} == {0.01}
    for done in (0.01, 0.25, 0.5, 0.81):
        expected = 0.002 + 0.008 * (1 - math.sqrt(done))
        assert learning_rate(0.7 + 0.3 * done, WSD) == pytest.approx(expected)


def test_on_the_plateau_the_rate_is_that_of_every_longer_budget() -> None:
    # What makes a checkpoint of the plateau good for any budget: nothing of the shorter one has come into it.
    short, long = (WSD.model_copy(update={"steps": steps, "warmup_fraction": 10 / steps}) for steps in (100, 1000))
    for step in range(71):
        rates = [learning_rate(budget_spent(train, step, 0, 0.0), train) for train in (short, long)]
        assert rates[0] == pytest.approx(rates[1], rel=1e-12)


def test_a_decay_over_the_whole_budget_leaves_no_plateau() -> None:
    train = TrainConfig(schedule="wsd", warmup_fraction=0, decay_fraction=1.0)
    points = [learning_rate(i / 100, train) for i in range(101)]
    assert all(a > b for a, b in itertools.pairwise(points))


@pytest.mark.parametrize("train", [TRAIN, WSD])
def test_past_the_end_of_a_budget_the_rate_stays(train: TrainConfig) -> None:
    assert learning_rate(1.7, train) == learning_rate(1.0, train)


def test_without_a_warm_up_the_rate_starts_at_its_peak() -> None:
    assert learning_rate(0.0, TRAIN.model_copy(update={"warmup_fraction": 0.0})) == 0.01


@pytest.mark.parametrize(("budget", "spent"), [({"steps": 8}, 0.5), ({"bytes": 400}, 0.25), ({"time_budget_s": 4}, 2)])
def test_each_budget_counts_its_own(budget: dict[str, int], spent: float) -> None:
    assert budget_spent(TrainConfig.model_validate(budget), step=4, bytes_seen=100, elapsed_s=8.0) == spent


def test_without_a_budget_nothing_can_be_spent() -> None:
    with pytest.raises(ConfigError, match=r"set one of train\.steps"):
        budget_spent(TRAIN, 0, 0, 0.0)


def test_the_table_of_learning_rates_is_that_of_the_presets() -> None:
    page = Path(__file__).resolve().parent.parent / "docs" / "training.md"
    rows = re.findall(r"^\| `(.+?)` \|(.+)\|$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    told = {
        name: [float(cell.replace(",", "")) for cell in cells.split("|")] for name, cells in rows if name in PRESETS
    }
    expected = {}
    for name in PRESETS:
        config = RunConfig.build(name)
        train, width = config.train, config.model.d_model
        step_bytes = train.accumulation * train.batch_windows * config.data.window_bytes
        rate = train.learning_rate
        expected[name] = [width, rate, round(rate * width, 2), train.warmup_fraction, step_bytes, train.steps]
    assert told == expected
