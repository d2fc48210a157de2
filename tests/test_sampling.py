"""The sampler's distribution is exact, its choice depends on logits, seed and position alone."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bytelm.errors import GenerationError
from bytelm.sampling import CHOICES, Sampler
from bytelm.vocab import EOD, VOCABULARY_SIZE

_ROWS = 64
# Quantiles of chi-square at 1 - 1e-3. Seeds are fixed: a test passes always or never.
_CHI_SQUARE_LIMIT = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 15: 37.70}


def _logits(probabilities: dict[int, float]) -> npt.NDArray[np.float32]:
    """One row whose softmax is this distribution."""
    row = np.full((1, VOCABULARY_SIZE), -1e9, np.float32)
    for byte, probability in probabilities.items():
        row[0, byte] = math.log(probability) + 3.0  # a softmax does not see a shift
    return row


def _draw(sampler: Sampler, logits_1V: npt.NDArray[np.float32], draws: int) -> npt.NDArray[np.int64]:
    assert draws % _ROWS == 0
    rows_MV = np.repeat(logits_1V, _ROWS, axis=0)
    return np.concatenate([sampler.choose(rows_MV, first) for first in range(0, draws, _ROWS)])


def _chi_square(ids: npt.NDArray[np.int64], distribution: dict[int, float]) -> float:
    counts = {byte: int((ids == byte).sum()) for byte in distribution}
    assert sum(counts.values()) == len(ids), "an id outside of the distribution was chosen"
    expected = {byte: probability * len(ids) for byte, probability in distribution.items()}
    return sum((counts[byte] - expected[byte]) ** 2 / expected[byte] for byte in distribution)


_LAW = {10: 0.5, 97: 0.25, 200: 0.125, 255: 0.1, EOD: 0.025}
# The distribution of the powers p**(1 / 0.5), normalised.
_SQUARES = {byte: p**2 / sum(q**2 for q in _LAW.values()) for byte, p in _LAW.items()}


@pytest.mark.parametrize(
    ("settings", "distribution"),
    [
        ({"temperature": 1.0}, _LAW),
        ({"temperature": 0.5}, _SQUARES),
        ({"temperature": 1.0, "top_k": 2}, {10: 2 / 3, 97: 1 / 3}),
        # 0.5 + 0.25 does not reach 0.8, so the third one stays.
        ({"temperature": 1.0, "top_p": 0.8}, {10: 4 / 7, 97: 2 / 7, 200: 1 / 7}),
        # 0.5 + 0.25 reaches 0.74: no third one.
        ({"temperature": 1.0, "top_p": 0.74}, {10: 2 / 3, 97: 1 / 3}),
        # At least 0.22 times 0.5.
        ({"temperature": 1.0, "min_p": 0.22}, {10: 4 / 7, 97: 2 / 7, 200: 1 / 7}),
        # top_p acts on what top_k left: 0.5 / 0.875 < 0.6 and with 0.25 it is reached.
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.6}, {10: 2 / 3, 97: 1 / 3}),
    ],
)
def test_draws_follow_the_law(settings: dict[str, Any], distribution: dict[int, float]) -> None:
    ids = _draw(Sampler(**settings, seed=11), _logits(_LAW), draws=256 * _ROWS)
    assert _chi_square(ids, distribution) < _CHI_SQUARE_LIMIT[len(distribution) - 1]


def test_neighbouring_positions_and_neighbouring_seeds_are_independent() -> None:
    distribution: dict[int, float] = dict.fromkeys((1, 2, 3, 4), 0.25)
    pairs = {16 * first + second: 1 / 16 for first in distribution for second in distribution}
    ids = _draw(Sampler(temperature=1.0, seed=5), _logits(distribution), draws=256 * _ROWS)
    others = _draw(Sampler(temperature=1.0, seed=6), _logits(distribution), draws=256 * _ROWS)
    assert _chi_square(16 * ids[0::2] + ids[1::2], pairs) < _CHI_SQUARE_LIMIT[15]
    assert _chi_square(16 * ids + others, pairs) < _CHI_SQUARE_LIMIT[15]


def test_same_seed_and_position_give_the_same_id_whoever_asks() -> None:
    rows_MV = np.random.default_rng(0).normal(size=(48, VOCABULARY_SIZE)).astype(np.float32)
    cases: list[dict[str, Any]] = [{}, {"top_k": 5, "top_p": 0.7}, {"min_p": 0.1}]
    for settings in cases:
        together = Sampler(temperature=0.9, seed=3, **settings).choose(rows_MV, 100)
        backwards = Sampler(temperature=0.9, seed=3, **settings)
        alone = [backwards.choose(rows_MV[row : row + 1], 100 + row)[0] for row in reversed(range(48))]
        assert together == alone[::-1]
        assert together != Sampler(temperature=0.9, seed=4, **settings).choose(rows_MV, 100)
        assert together != Sampler(temperature=0.9, seed=3, **settings).choose(rows_MV, 101)


def test_noise_is_that_of_the_position_after_any_number_of_others() -> None:
    logits_1V = np.zeros((1, VOCABULARY_SIZE), np.float32)
    sampler = Sampler(temperature=1.0, seed=1)
    first = [sampler.choose(logits_1V, position) for position in range(300)]
    assert [sampler.choose(logits_1V, position) for position in range(300)] == first
    assert sampler.choose(logits_1V, 1 << 40) == Sampler(temperature=1.0, seed=1).choose(logits_1V, 1 << 40)


def test_greedy_takes_the_highest_and_of_ties_the_lowest_id() -> None:
    rows_MV = np.zeros((3, VOCABULARY_SIZE), np.float32)
    rows_MV[1, [7, 9]] = 2.0
    rows_MV[2, EOD] = 1.0
    assert Sampler().choose(rows_MV, 0) == [0, 7, EOD]


def test_ties_at_the_edge_of_top_k_stay_with_the_lowest_ids() -> None:
    logits_1V = np.zeros((1, VOCABULARY_SIZE), np.float32)
    ids = _draw(Sampler(temperature=1.0, top_k=3), logits_1V, draws=_ROWS)
    assert set(ids) == {0, 1, 2}


def test_top_k_of_one_is_greedy() -> None:
    rows_MV = np.random.default_rng(1).normal(size=(32, VOCABULARY_SIZE)).astype(np.float32)
    assert Sampler(temperature=1.0, top_k=1).choose(rows_MV, 0) == Sampler().choose(rows_MV, 0)


def test_unused_ids_are_never_chosen() -> None:
    rows_MV = np.zeros((_ROWS, VOCABULARY_SIZE), np.float32)
    rows_MV[:, CHOICES:] = 1e6
    assert Sampler().choose(rows_MV, 0) == [0] * _ROWS
    assert max(Sampler(temperature=1.0).choose(rows_MV, 0)) < CHOICES


def test_the_lowest_temperature_agrees_with_greedy() -> None:
    rows_MV = (50 * np.random.default_rng(2).normal(size=(32, VOCABULARY_SIZE))).astype(np.float32)
    assert Sampler(temperature=1e-4, top_p=0.9).choose(rows_MV, 0) == Sampler().choose(rows_MV, 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": 1e-9},
        {"temperature": 1.0, "top_k": 0},
        {"temperature": 1.0, "top_p": 0.0},
        {"temperature": 1.0, "top_p": 1.5},
        {"temperature": 1.0, "top_p": math.nan},
        {"temperature": 1.0, "min_p": -0.1},
        {"seed": -1},
        {"seed": 1 << 63},
        {"top_k": 5},
        {"top_p": 0.9},
        {"min_p": 0.1},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(GenerationError, match=next(reversed(settings))):
        Sampler(**settings)


def test_log_probs_are_those_of_the_distribution_that_is_sampled_from() -> None:
    logits_1V = _logits({1: 0.5, 2: 0.3, 3: 0.2})
    cases: tuple[tuple[dict[str, Any], dict[int, float]], ...] = (
        ({}, {1: 0.5, 2: 0.3, 3: 0.2}),  # greedy: at temperature 1
        ({"temperature": 0.5}, {1: 25 / 38, 2: 9 / 38, 3: 4 / 38}),
        ({"temperature": 1.0, "top_k": 2}, {1: 0.625, 2: 0.375}),
    )
    for settings, expected in cases:
        found_V = np.exp(Sampler(**settings).log_probs(logits_1V)[0])
        assert found_V.sum() == pytest.approx(1.0)
        assert {byte: found_V[byte] for byte in expected} == pytest.approx(expected, abs=1e-6)
