"""What every decoder is given: a request, what is known of costs and drafts, and where its context begins."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bytelm.drafting import Calibration, StepCost, prior_cost
from bytelm.generation import GenerateSettings
from bytelm.pair_correction import PairCorrection

if TYPE_CHECKING:
    from bytelm.model import ByteLM


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and the settings of its continuation."""

    prompt: bytes
    settings: GenerateSettings


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """What was measured of a model on a machine; without it, sensible guesses take its place.

    Attributes:
        costs: Of a step, for some numbers of bytes before it, ascending.
        calibration: How often drafts were right on held-out bytes.
        pairs: Correction of the draft heads by the bytes that were drafted before; None for none.
        shared: Whether this very calibration goes on counting; otherwise each decoding begins with a copy.
    """

    costs: tuple[tuple[int, StepCost], ...]
    calibration: Calibration
    pairs: PairCorrection | None = None
    shared: bool = False

    def cost_at(self, past: int) -> StepCost:
        """Cost where so many bytes are before a step: a straight line between two numbers, else the nearest one."""
        place = next((place for place, (own, _) in enumerate(self.costs) if own >= past), len(self.costs) - 1)
        after, cost = self.costs[place]
        before, nearer = self.costs[max(place - 1, 0)]
        if place == 0 or after < past:
            return cost
        share = (past - before) / (after - before)

        def between(one: float, other: float) -> float:
            return one + share * (other - one)

        rows = tuple(sorted({*nearer.rows, *cost.rows}))
        return StepCost(
            rows,
            tuple(between(nearer.of(count), cost.of(count)) for count in rows),
            between(nearer.head, cost.head),
            between(nearer.sequence, cost.sequence),
        )


def prior_plan(
    model: "ByteLM", pairs: PairCorrection | None = None, calibration: Calibration | None = None
) -> DecodePlan:
    """Guesses of what steps through torch cost, for a model that was not timed here.

    Args:
        model: To be decoded.
        pairs: Correction of its heads, which belongs to its weights alone.
        calibration: Of its drafts, which does too.
    """
    counts = model.parameter_counts()
    of_head = counts["heads"] / model.heads.count
    cost = prior_cost(model.embedding.device.type, head=of_head / (counts["trunk"] + of_head))
    return DecodePlan(((0, cost),), calibration or Calibration(), pairs)


def context_start(length: int, context_bytes: int) -> int:
    """Index of the first id that is read when a generation begins with ``length`` ids.

    Example:
        >>> context_start(8, context_bytes=8), context_start(9, context_bytes=8)
        (0, 5)
    """
    return 0 if length <= context_bytes else slid_start(length, context_bytes)


def slid_start(length: int, context_bytes: int) -> int:
    """Index of the first id that is kept when the context slides: its last half stays."""
    return length - context_bytes // 2
