"""The search for rate and batch tries what it says, chooses the best, and keeps what an arm sets itself."""

import pytest

from bytelm.arms import Arm, Budget, parse_budgets
from bytelm.comparison_tuning import Trial, candidates, search, tuning_budget
from bytelm.errors import ConfigError, TrainingError

ARM = Arm.parse("byte:k=2")


class Scores:
    """Answers a search: a score for each rate and number of windows, worse with the distance from the best ones."""

    def __init__(self, rate: float, windows: int, *, failing: float | None = None, stop_after: int = 99) -> None:
        self.asked: list[tuple[float, int]] = []
        self._best, self._failing, self._stop_after = (rate, windows), failing, stop_after

    def __call__(self, rate: float, windows: int) -> Trial | None:
        if len(self.asked) == self._stop_after:
            return None
        self.asked.append((rate, windows))
        if rate == self._failing:
            return Trial(learning_rate=rate, batch_windows=windows, bits_per_byte=None, reason="not finite")
        away = abs(rate / self._best[0] - 1) + abs(windows / self._best[1] - 1)
        return Trial(learning_rate=rate, batch_windows=windows, bits_per_byte=2 + away)


def test_the_rate_is_chosen_first_and_then_the_batch_at_that_rate() -> None:
    scores = Scores(0.25, 8)
    found = search(ARM, 0.5, 4, scores)
    assert scores.asked == [(0.25, 4), (0.5, 4), (1.0, 4), (0.25, 2), (0.25, 8)]
    assert found is not None
    assert (found.learning_rate, found.batch_windows) == (0.25, 8)
    assert found.changes == ("train.learning_rate=0.25", "train.batch_windows=8")
    assert found.at_edge == ("train.learning_rate", "train.batch_windows")
    inside = search(ARM, 0.5, 4, Scores(0.5, 4))
    assert inside is not None
    assert inside.at_edge == ()


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("byte:train.learning_rate=0.5", [(0.5, 2), (0.5, 4), (0.5, 8)]),
        ("byte:train.batch_windows=4", [(0.25, 4), (0.5, 4), (1.0, 4)]),
        ("byte:train.batch_windows=4:train.learning_rate=0.5", []),
    ],
)
def test_an_arm_keeps_what_it_sets_itself(text: str, asked: list[tuple[float, int]]) -> None:
    scores = Scores(0.25, 2)
    found = search(Arm.parse(text), 0.5, 4, scores)
    assert scores.asked == asked
    assert found is not None
    assert len(found.trials) == len(asked)
    assert found.learning_rate == (0.5 if "learning_rate" in text else 0.25)
    assert found.batch_windows == (4 if "batch_windows" in text else 2)


def test_a_training_that_fails_is_not_chosen() -> None:
    found = search(ARM, 0.5, 4, Scores(1.0, 4, failing=1.0))
    assert found is not None
    assert found.learning_rate == 0.5
    assert [trial.reason for trial in found.trials] == ["", "", "not finite", "", ""]


def test_an_arm_of_which_every_training_fails_is_named() -> None:
    with pytest.raises(TrainingError, match=r"search for the arm byte:k=2:\S+ gave a score: not finite"):
        search(Arm.parse("byte:k=2:train.learning_rate=0.5"), 0.5, 4, Scores(1.0, 4, failing=0.5))


@pytest.mark.parametrize("asked", [0, 2, 4])
def test_a_search_that_is_ended_chooses_nothing(asked: int) -> None:
    assert search(ARM, 0.5, 4, Scores(0.5, 4, stop_after=asked)) is None


def test_one_window_is_the_least_and_one_the_largest_rate() -> None:
    assert candidates(ARM, 0.75, 1) == ([0.375, 0.75], [1, 2])


def test_each_training_has_a_quarter_of_the_smallest_budget() -> None:
    assert tuning_budget(parse_budgets("seconds:240,60")) == Budget(kind="seconds", amount=15.0)
    with pytest.raises(ConfigError, match="a budget of parameters has no share"):
        tuning_budget(parse_budgets("parameters:1M"))
