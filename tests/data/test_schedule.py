"""The schedule of a mixture: no count is off by one anywhere, and it is one function however it is asked."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.data.schedule import Schedule
from bytelm.errors import ConfigError


def walk(schedule: Schedule, windows: int) -> list[int]:
    return schedule.corpora(np.arange(windows))[0].tolist()


def furthest_off(order: list[int], weights: list[Fraction]) -> Fraction:
    """The largest distance between a count and weight x n, at any n."""
    counts = [0] * len(weights)
    worst = Fraction(0)
    for n, corpus in enumerate(order, start=1):
        counts[corpus] += 1
        worst = max(worst, *(abs(count - n * weight) for count, weight in zip(counts, weights, strict=True)))
    return worst


def furthest_off_greedily(parts: list[int]) -> Fraction:
    """The same where whoever is furthest behind comes next."""
    weights = [Fraction(part, sum(parts)) for part in parts]
    counts = [0] * len(parts)
    order = []
    for n in range(1, sum(parts) + 1):
        corpus = max(range(len(parts)), key=lambda one: n * weights[one] - counts[one])
        counts[corpus] += 1
        order.append(corpus)
    return furthest_off(order, weights)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=9))
def test_no_count_is_ever_off_by_one(parts: list[int]) -> None:
    weights = [Fraction(part, sum(parts)) for part in parts]
    order = walk(Schedule([(0, [str(part) for part in parts])]), 2 * sum(parts) + 7)
    bound = 1 - Fraction(1, 2 * len(parts) - 2) if len(parts) > 1 else Fraction(0)
    assert furthest_off(order, weights) <= bound


def test_to_serve_whoever_is_furthest_behind_would_not_do() -> None:
    assert furthest_off_greedily([3, 1, 5, 5, 5, 1]) == 1


@pytest.mark.parametrize("weights", [("0.7", "0.3"), ("0.501", "0.499"), ("0.9999", "0.0001"), ("1/3", "2/3", "0.001")])
def test_weights_may_be_decimals_and_ratios(weights: tuple[str, ...]) -> None:
    total = sum(map(Fraction, weights))
    assert furthest_off(walk(Schedule([(0, weights)]), 30_000), [Fraction(weight) / total for weight in weights]) < 1


def test_a_weight_of_zero_gives_nothing() -> None:
    assert set(walk(Schedule([(0, ("2", "0", "1"))]), 100)) == {0, 2}
    assert set(walk(Schedule([(0, ("0", "5"))]), 100)) == {1}


stretches = st.lists(
    st.tuples(st.integers(1, 50), st.lists(st.integers(0, 9).map(str), min_size=3, max_size=3)), min_size=1, max_size=4
).filter(lambda found: all(set(weights) != {"0"} for _, weights in found))


@settings(deadline=None)
@given(stretches, st.data())
def test_each_corpus_is_read_in_order_without_loss_or_repeat(
    found: list[tuple[int, list[str]]], data: st.DataObject
) -> None:
    begins = np.cumsum([0, *(length for length, _ in found[:-1])]).tolist()
    schedule = Schedule([(begin, weights) for begin, (_, weights) in zip(begins, found, strict=True)])
    windows = 300
    corpora_N, numbers_N = schedule.corpora(np.arange(windows))
    for corpus in range(3):
        mine = numbers_N[corpora_N == corpus]
        assert mine.tolist() == list(range(len(mine)))
    for window in data.draw(st.lists(st.integers(0, windows), max_size=5)):
        assert schedule.counts(window).tolist() == np.bincount(corpora_N[:window], minlength=3).tolist()
    # whatever part is asked for
    some = np.sort(np.array(data.draw(st.lists(st.integers(0, windows - 1), unique=True)), np.int64))
    again, numbers = schedule.corpora(some)
    assert again.tolist() == corpora_N[some].tolist()
    assert numbers.tolist() == numbers_N[some].tolist()
    assert Schedule(schedule.stretches).corpora(np.arange(windows))[1].tolist() == numbers_N.tolist()


def test_weights_that_change_hold_from_their_window_on() -> None:
    before = Schedule([(0, ("0.7", "0.3"))])
    after = before.changed(101, ("1", "9"))
    assert walk(after, 101) == walk(before, 101)
    rest = walk(after, 301)[101:]
    assert furthest_off(rest, [Fraction(1, 10), Fraction(9, 10)]) < 1
    assert after.weights == ("1", "9")
    assert after.changed(50, ("1", "1")).stretches == [(0, ("0.7", "0.3")), (50, ("1", "1"))]
    assert before.changed(0, ("1", "1")).stretches == [(0, ("1", "1"))]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (("0.7", "x"), "each is a number such as"),
        (("1", "1/0"), "each is a number such as"),
        (("nan", "1"), "each is a number such as"),
        (("1", "-1"), "none may be below 0"),
        (("0",), "weight 0: none may be below 0, and one must be above 0"),
        (("0", "0"), "one must be above 0"),
        (("0.333333333", "0.666666667"), "repeat after 1000000000 windows only, 100000 at most"),
    ],
)
def test_weights_without_a_schedule_are_refused(weights: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Schedule([(0, weights)])
    with pytest.raises(ConfigError, match="3 weights for 2 corpora; give one for each"):
        Schedule([(0, ("1", "1"))]).changed(5, ("1", "1", "1"))


def test_counts_far_out_are_exact() -> None:
    schedule = Schedule([(0, ("0.123", "0.877"))])
    window = 10**15 + 7
    assert abs(schedule.counts(window)[0] - Fraction("0.123") * window) < 1
    assert schedule.counts(window).sum() == window
