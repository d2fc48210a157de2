"""Which of several corpora gives the n-th window: exactly by weight, at every n, as a pure function.

Weights are ratios of whole numbers, so their schedule repeats after as many windows as the numbers sum up to. Within
one such period each window goes to the corpus whose turn is due first among those whose turn has come, by Tijdeman's
rule: the count of each corpus then never differs from weight x n by 1 or more. (To serve whoever is furthest behind is
simpler, and fails this bound from three corpora on.) Weights may change at any window; from there counts begin anew.

Source: Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980): with k corpora no count is off by
more than 1 - 1 / (2k - 2).

Suffixes: N windows, C corpora, P windows of a period.
"""

import heapq
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bytelm.errors import ConfigError

LONGEST_PERIOD: Final = 100_000


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Windows under the same weights."""

    begin: int
    """Global index of the first one."""
    weights: tuple[str, ...]
    before_C: NDArray[np.int64]
    """Windows that each corpus has given before."""
    corpora_P: NDArray[np.int64]
    counts_CP: NDArray[np.int64]
    """Windows of each corpus before each place of the period, and in the whole of it: (C, P + 1)."""

    def counts(self, window: int) -> NDArray[np.int64]:
        """Windows that each corpus has given before a window of this stretch."""
        periods, place = divmod(window - self.begin, len(self.corpora_P))
        return self.before_C + periods * self.counts_CP[:, -1] + self.counts_CP[:, place]


class Schedule:
    """From the number of a window to its corpus and to its number there.

    Args:
        stretches: Window from which weights hold, and the weight of each corpus as text; the first from window 0 on,
            each later than the one before.

    Raises:
        ConfigError: Weights that are no numbers, negative or all 0, or that need too long a period.

    Example:
        >>> schedule = Schedule([(0, ("0.7", "0.3"))])
        >>> schedule.corpora(np.arange(10))[0]
        array([0, 1, 0, 0, 0, 1, 0, 0, 1, 0])
    """

    def __init__(self, stretches: Sequence[tuple[int, Sequence[str]]]) -> None:
        assert stretches[0][0] == 0
        self._stretches: list[_Stretch] = []
        for begin, weights in stretches:
            self._append(begin, tuple(weights))

    @property
    def stretches(self) -> list[tuple[int, tuple[str, ...]]]:
        """What ``Schedule`` makes the same one from."""
        return [(stretch.begin, stretch.weights) for stretch in self._stretches]

    @property
    def weights(self) -> tuple[str, ...]:
        """Those that hold in the end."""
        return self._stretches[-1].weights

    def changed(self, window: int, weights: Sequence[str]) -> "Schedule":
        """The same up to a window, other weights from there on; what was to change later is dropped.

        Raises:
            ConfigError: Another number of weights, or as ``Schedule``.
        """
        if len(weights) != len(self.weights):
            raise ConfigError(f"{len(weights)} weights for {len(self.weights)} corpora; give one for each")
        kept = [(begin, before) for begin, before in self.stretches if begin < window]
        return Schedule([*kept, (window, tuple(weights))])

    def corpora(self, windows_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Corpus of each window, and the window's number in that corpus.

        Args:
            windows_N: Global indices, int64, ascending.
        """
        corpora_N, numbers_N = np.empty((2, len(windows_N)), np.int64)
        begins = [stretch.begin for stretch in self._stretches]
        bounds = [*np.searchsorted(windows_N, begins).tolist(), len(windows_N)]
        for stretch, first, end in zip(self._stretches, bounds[:-1], bounds[1:], strict=True):
            periods, places = np.divmod(windows_N[first:end] - stretch.begin, len(stretch.corpora_P))
            corpora = stretch.corpora_P[places]
            before = stretch.before_C[corpora] + periods * stretch.counts_CP[corpora, -1]
            corpora_N[first:end], numbers_N[first:end] = corpora, before + stretch.counts_CP[corpora, places]
        return corpora_N, numbers_N

    def counts(self, window: int) -> NDArray[np.int64]:
        """Windows that each corpus gives before a window, int64 (C)."""
        last = bisect_right(self._stretches, window, key=lambda stretch: stretch.begin) - 1
        return self._stretches[last].counts(window)

    def _append(self, begin: int, weights: tuple[str, ...]) -> None:
        parts = whole_weights(weights)
        before_C = self._stretches[-1].counts(begin) if self._stretches else np.zeros(len(parts), np.int64)
        assert not self._stretches or begin > self._stretches[-1].begin
        corpora_P = np.array(_period(parts), np.int64)
        counts_CP = np.zeros((len(parts), len(corpora_P) + 1), np.int64)
        np.cumsum(corpora_P == np.arange(len(parts))[:, None], axis=1, out=counts_CP[:, 1:])
        self._stretches.append(_Stretch(begin, weights, before_C, corpora_P, counts_CP))


def whole_weights(weights: Sequence[str]) -> list[int]:
    """Weights as the smallest whole numbers of the same ratios.

    Raises:
        ConfigError: They are no numbers, negative or all 0, or need too long a period.
    """
    try:
        exact = [Fraction(weight) for weight in weights]
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"weights {', '.join(weights)}: each is a number such as 0.7, 2 or 1/3") from error
    if min(exact) < 0 or not any(exact):
        found = f"weights {', '.join(weights)}" if len(weights) > 1 else f"weight {weights[0]}"
        raise ConfigError(f"{found}: none may be below 0, and one must be above 0; give another weight")
    whole = [int(weight * math.lcm(*(one.denominator for one in exact))) for weight in exact]
    parts = [part // math.gcd(*whole) for part in whole]
    if sum(parts) > LONGEST_PERIOD:
        raise ConfigError(
            f"weights {', '.join(weights)} repeat after {sum(parts)} windows only, {LONGEST_PERIOD} at most are "
            "planned; write them with fewer digits, or as ratios such as 1 and 2"
        )
    return parts


def _period(parts: Sequence[int]) -> list[int]:
    """The corpus of each window of one period."""
    taking_part = [corpus for corpus, part in enumerate(parts) if part]
    if len(taking_part) == 1:
        return taking_part
    total, slack = sum(parts), 2 * len(taking_part) - 2
    # The j-th turn of a corpus comes at window (j - 1 + 1/slack) / weight and is due at (j - 1/slack) / weight. Both
    # are kept as whole numbers: multiplied by slack and by the least common multiple of all parts.
    common = math.lcm(*(parts[corpus] for corpus in taking_part))
    unit = {corpus: common // parts[corpus] * total for corpus in taking_part}
    coming = [(unit[corpus], corpus, 1) for corpus in taking_part]
    heapq.heapify(coming)
    due: list[tuple[int, int, int]] = []
    period = []
    for window in range(1, total + 1):
        while coming and coming[0][0] <= window * slack * common:
            _, corpus, turn = heapq.heappop(coming)
            heapq.heappush(due, ((turn * slack - 1) * unit[corpus], corpus, turn))
        _, corpus, turn = heapq.heappop(due)
        period.append(corpus)
        heapq.heappush(coming, ((turn * slack + 1) * unit[corpus], corpus, turn + 1))
    return period
