"""How a comparison chooses the learning rate and the batch of each arm: a small search that is the same for all.

A search along one setting at a time: first the learning rate, at half, once and twice that of the arm's settings; then
the windows of a micro-batch likewise, at the rate that was best. Five trainings an arm, each with a share of the
smallest budget, with the first seed, scored on the selection part of the held-out text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bytelm.arms import Arm, Budget
from bytelm.errors import ConfigError, TrainingError

TUNING_SHARE: Final = 0.25
"""Share of the smallest budget that each training of the search has."""
FACTORS: Final = (0.5, 1.0, 2.0)
RATE: Final = "train.learning_rate"
BATCH: Final = "train.batch_windows"
SEARCH: Final = (
    "learning rate × 1/2, 1, 2, then windows of a micro-batch × 1/2, 1, 2 at the best rate; each training has 1/4 of "
    "the smallest budget and the first seed, and is scored on the selection part; an arm keeps what it sets itself"
)
"""The search in words, for people."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of a search.

    Attributes:
        learning_rate: Learning rate of this training.
        batch_windows: Windows in a micro-batch of this training.
        bits_per_byte: Score of head 0 on the selection part; None if the training failed.
        reason: Why the training failed; empty if it did not.
    """

    learning_rate: float
    batch_windows: int
    bits_per_byte: float | None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What was tried for an arm, and what was chosen.

    Attributes:
        name: Name of the arm.
        trials: Trainings in the order of the search; empty if the arm sets both values itself.
        learning_rate: Chosen learning rate.
        batch_windows: Chosen number of windows in a micro-batch.
    """

    name: str
    trials: tuple[Trial, ...]
    learning_rate: float
    batch_windows: int

    @property
    def changes(self) -> tuple[str, ...]:
        """What was chosen, in the form of ``--set``."""
        return (f"{RATE}={self.learning_rate!r}", f"{BATCH}={self.batch_windows}")

    @property
    def at_edge(self) -> tuple[str, ...]:
        """Settings whose best value is the least or the largest one tried: a wider search may find a better one."""
        found = []
        for name, chosen, tried in (
            (RATE, self.learning_rate, {trial.learning_rate for trial in self.trials}),
            (BATCH, self.batch_windows, {trial.batch_windows for trial in self.trials}),
        ):
            if len(tried) > 1 and chosen in (min(tried), max(tried)):
                found.append(name)
        return tuple(found)


def tuning_budget(budgets: tuple[Budget, ...]) -> Budget:
    """The budget of each training of a search.

    Args:
        budgets: Budgets of the comparison, the smallest first.

    Raises:
        ConfigError: They are of parameters, of which no share can be trained.
    """
    smallest = budgets[0]
    if smallest.kind == "parameters":
        raise ConfigError(
            "--tune-arms trains with a share of the budget, and a budget of parameters has no share; give a budget of "
            "seconds, flops or bytes, or leave it out"
        )
    return Budget(kind=smallest.kind, amount=smallest.amount * TUNING_SHARE)


def candidates(arm: Arm, learning_rate: float, batch_windows: int) -> tuple[list[float], list[int]]:
    """Rates and windows that are tried, ascending; one value alone where the arm sets it itself.

    Example:
        >>> candidates(Arm.parse("byte:train.learning_rate=0.5"), 0.5, 1)
        ([0.5], [1, 2])
    """
    own = {change.partition("=")[0] for change in arm.changes}
    rates = [learning_rate] if RATE in own else [learning_rate * factor for factor in FACTORS]
    windows = [batch_windows] if BATCH in own else sorted({max(1, int(batch_windows * factor)) for factor in FACTORS})
    return [rate for rate in rates if rate <= 1.0], windows


def search(
    arm: Arm, learning_rate: float, batch_windows: int, ask: Callable[[float, int], Trial | None]
) -> Tuned | None:
    """Choose rate and batch of an arm.

    Args:
        arm: Which.
        learning_rate: Learning rate of the arm's settings, where the search begins.
        batch_windows: Windows in a micro-batch of the arm's settings, likewise.
        ask: Trains with a rate and a number of windows, and scores; None where the caller ended it.

    Returns:
        What was tried and chosen; None where the caller ended it. Ties go to the first one.

    Raises:
        TrainingError: No training of one of the two steps gave a score.
    """
    rates, windows = candidates(arm, learning_rate, batch_windows)
    trials: list[Trial] = []
    if len(rates) > 1:
        for rate in rates:
            trial = ask(rate, batch_windows)
            if trial is None:
                return None
            trials.append(trial)
        learning_rate = _best(arm, trials).learning_rate
    if len(windows) > 1:
        known = [trial for trial in trials if trial.learning_rate == learning_rate]
        for count in windows:
            if count in (trial.batch_windows for trial in known):
                continue
            trial = ask(learning_rate, count)
            if trial is None:
                return None
            trials.append(trial)
            known.append(trial)
        batch_windows = _best(arm, known).batch_windows
    return Tuned(name=arm.name, trials=tuple(trials), learning_rate=learning_rate, batch_windows=batch_windows)


def _best(arm: Arm, trials: list[Trial]) -> Trial:
    scored = [(trial.bits_per_byte, trial) for trial in trials if trial.bits_per_byte is not None]
    if not scored:
        raise TrainingError(f"no training of the search for the arm {arm.name} gave a score: {trials[-1].reason}")
    return min(scored, key=lambda pair: pair[0])[1]
