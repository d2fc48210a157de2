"""Who proposes the next bytes, and how many proposals are worth their rows.

    heads           heads 1 … K - 1 at the last accepted row: a chain of their best bytes
    prompt lookup   what followed the last time the same bytes stood in the text (``SuffixIndex``); it goes on where
                    the heads end, behind the K-th byte

The heads know nothing of each other; a correction by the bytes drafted before (``pair_correction``) mends most of that.

Each candidate has a probability: that the trunk chooses it, given that the candidates before it are right. It is
estimated from the heads' probabilities and the length of the match, and corrected by how often earlier proposals of
the same kind were right. The product along the chain is its ``path_probability``.

The planner takes as many candidates as pay: the expected bytes of a step, less its cost at the rate that decoding runs
at, are highest. The cost of a number of rows is a table of stairs, so all numbers are tried. No gain, no draft.

Nothing here can change a byte: what is proposed is only ever compared with what the trunk chooses.

Shapes: K prediction heads, V vocabulary.

Source: Rows by expected gain over cost: Dinkelbach 1967. Chains from heads: Stern et al. 2018, arXiv 1811.03115.
"""

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from bytelm.law import DecodeContext, NextByte
from bytelm.pair_correction import PairCorrection
from bytelm.suffixes import SuffixIndex
from bytelm.vocab import EOD

DraftPolicy = Literal["adaptive", "heads", "ngram", "none"]

TRUNK: Final = 0
LOOKUP: Final = -1
"""Sources of a byte; k >= 1 is head k."""

LEAST_PATH_PROBABILITY: Final = 0.03
"""A candidate below it is not considered: on a CPU it never pays for its row, elsewhere hardly ever."""

MOST_DRAFTS: Final = 47
"""Most candidates of a draft: with the last certain id a pass has 48 rows."""

_MOST_LOOKUP_DRAFTS: Final = 15
_DECAY: Final = 0.98
_LONGEST_PAUSE: Final = 32
_GREEDY_EXPONENT: Final = 0.6
_PRIOR_WEIGHT: Final = 6.0

_PRIOR_OF_MATCH: Final = ((4, 0.35), (6, 0.5), (8, 0.6), (12, 0.7), (16, 0.8), (24, 0.9), (32, 0.95), (64, 0.98))
"""Share of right bytes after a match of so many bytes, before anything was observed."""
_PRIOR_AGAINST: Final = ((4, 0.15), (6, 0.2), (8, 0.25), (12, 0.3), (16, 0.4), (24, 0.5), (32, 0.6), (64, 0.7))
"""The same where the head's best byte is another: the head is then likelier to be right than it is else."""


@dataclass(slots=True)
class Candidate:
    """A byte that may be drafted, behind the candidates before it.

    Attributes:
        identifier: The byte.
        source: ``LOOKUP`` or a head.
        probability: That it is right, given that those before it are.
        path_probability: That it and all before it are right.
        kind: What it is counted under in the calibration, or None.
        lookup: What prompt lookup proposed here, with its kind; None where it proposed nothing.
        against: Kind of that proposal where the head's best byte is another.
    """

    identifier: int
    source: int
    probability: float
    path_probability: float
    kind: str | None = None
    lookup: tuple[int, str] | None = None
    against: str | None = None


@dataclass(slots=True)
class Calibration:
    """How often proposals of each kind were right: shares that follow the text, old observations fading.

    Attributes:
        counts: For each kind the right ones and all.
    """

    counts: dict[str, tuple[float, float]] = field(default_factory=dict)

    def share(self, kind: str, prior: float) -> float:
        """Expected share of right ones."""
        right, total = self.counts.get(kind, (0.0, 0.0))
        return (right + _PRIOR_WEIGHT * prior) / (total + _PRIOR_WEIGHT)

    def observe(self, kind: str, *, right: bool) -> None:
        """Count one."""
        before = self.counts.get(kind, (0.0, 0.0))
        self.counts[kind] = before[0] * _DECAY + right, before[1] * _DECAY + 1.0


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step costs by the rows of its pass, in seconds; the planner needs the ratios alone.

    Attributes:
        rows: Ascending, at least two.
        seconds: Of a pass with so many rows, head 0 and choice included; a straight line between them.
        head: Of one draft head at one row.
        sequence: Of each sequence beyond the first.
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    head: float
    sequence: float = 0.0

    def of(self, rows: int, sequences: int = 1) -> float:
        """Seconds of a pass."""
        place = min(max(bisect.bisect_left(self.rows, rows), 1), len(self.rows) - 1)
        slope = (self.seconds[place] - self.seconds[place - 1]) / (self.rows[place] - self.rows[place - 1])
        return self.seconds[place - 1] + slope * (rows - self.rows[place - 1]) + self.sequence * (sequences - 1)


def prior_cost(device: str, *, head: float) -> StepCost:
    """Cost where nothing was measured: on a CPU a row costs a twentieth of a pass, elsewhere hardly anything.

    Args:
        device: torch's name of its type.
        head: Cost of one draft head at one row, a pass of 4 rows being 1.
    """
    slope = 0.045 if device == "cpu" else 0.003
    return StepCost((1, 4, 64), (1 - slope, 1.0, 1.0 + 60 * slope), head)


class Drafter:
    """Proposes for one sequence.

    Args:
        next_byte: How the sequence chooses.
        policy: Who may propose.
        calibration: Shared by all sequences of a run.
        data: Prompt; None where ids stand for several bytes and prompt lookup is off.
        pairs: Correction of the heads by the bytes that were drafted before; None for none.
    """

    def __init__(
        self,
        next_byte: NextByte,
        policy: DraftPolicy,
        calibration: Calibration,
        data: bytes | None,
        pairs: PairCorrection | None = None,
    ) -> None:
        self._next_byte, self._policy, self._calibration, self._pairs = next_byte, policy, calibration, pairs
        # A draft of the highest byte is right more often than one of a sampled byte: they are counted apart.
        self._rule = "" if next_byte.sampler.greedy else "drawn "
        self._text = SuffixIndex(data) if data is not None and policy in ("adaptive", "ngram") else None
        self._gain, self._pause, self._wait = 1.0, 0, 0  # bytes per step by the heads; steps without them
        self._asked = False

    def should_run_heads(self) -> bool:
        """Whether to run the heads after this step: where they hardly ever help, only now and then."""
        self._asked = self._policy != "adaptive" or self._wait == 0
        self._wait = max(0, self._wait - 1)
        return self._asked

    def extend(self, ids: Sequence[int]) -> None:
        """Append ids that became certain."""
        if self._text is not None:
            self._text.extend(bytes(ids))

    def propose(self, logits_KV: npt.NDArray[np.float32] | None, context: DecodeContext, limit: int) -> list[Candidate]:
        """A chain of candidates.

        Args:
            logits_KV: Of heads 1 … K - 1 at the last accepted row; None where they did not run.
            context: Of the byte after the last certain one.
            limit: Candidates at most.
        """
        if logits_KV is None or not np.isfinite(logits_KV).all():  # heads that have diverged cost speed alone
            logits_KV = np.empty((0, 0), np.float32)
        found: list[Candidate] = []
        path_probability, drafted = 1.0, b""
        continuation, length = b"", 0  # what followed the last time, and after how many equal bytes
        for depth in range(limit):
            logits_V = logits_KV[depth] if depth < len(logits_KV) else None
            if not continuation and self._text is not None and (logits_V is not None or depth == 0):
                match = self._text.find(drafted)
                if match is not None:
                    continuation, length = self._text.following(match.place, limit, drafted), match.length
            if continuation and not self._next_byte.permits(continuation[0], context):
                continuation = b""
            guess = (continuation[0], length) if continuation else None
            candidate = self._candidate(logits_V, guess, depth, context, path_probability)
            if candidate is None:
                break
            path_probability = candidate.path_probability
            if self._policy == "adaptive" and path_probability < LEAST_PATH_PROBABILITY:
                break
            found.append(candidate)
            byte = bytes((candidate.identifier,)) if candidate.identifier < EOD else b""
            continuation, length = (continuation[1:] if byte and continuation[:1] == byte else b""), length + 1
            drafted += byte
            context = context.after(candidate.identifier)
        return found

    def _candidate(
        self,
        logits_V: npt.NDArray[np.float32] | None,
        guess: tuple[int, int] | None,
        depth: int,
        context: DecodeContext,
        path_probability: float,
    ) -> Candidate | None:
        """The best byte of a depth by a head and prompt lookup; None where there is none, or the document ends."""
        weight, looked_up, lookup = 0.0, -1, None
        if guess is not None:
            looked_up, length = guess
            lookup = looked_up, f"{self._rule}past {_match_bin(length)}"
            weight = self._calibration.share(lookup[1], _prior_of_match(length))
        if logits_V is None:
            if lookup is None:
                return None
            return Candidate(looked_up, LOOKUP, weight, path_probability * weight, None, lookup)
        if self._pairs is not None:
            logits_V = self._pairs.corrected(depth, logits_V, context.recent)
        logits_V = self._next_byte.logits(logits_V, context)
        sampler = self._next_byte.sampler
        best = sampler.choose(logits_V[None], context.position)[0]
        log_probs_V = sampler.log_probs(logits_V[None])[0]
        against = None
        if guess is not None and best != looked_up:
            against = f"{self._rule}against {_match_bin(guess[1])}"
            weight = self._calibration.share(against, _prior_of_match(guess[1], _PRIOR_AGAINST))

        def mixed(identifier: int) -> float:
            """Prompt lookup is right with its weight; otherwise the head's distribution counts."""
            return weight * (identifier == looked_up) + (1.0 - weight) * math.exp(log_probs_V[identifier])

        if lookup is not None and best != looked_up:
            # The trunk's choice adds the noise of the position, so the comparison must do so as well.
            scores = [math.log(max(mixed(identifier), 1e-300)) for identifier in (looked_up, best)]
            if not sampler.greedy:
                noise_V = sampler.noise(context.position)
                scores = [score + noise_V[one] for score, one in zip(scores, (looked_up, best), strict=True)]
            if scores[0] > scores[1]:
                best = looked_up
        if best == EOD:
            return None
        agree, probability = best == looked_up, mixed(best)
        kind = f"{self._rule}{'agree' if agree else 'head'} {min(depth, 8)} {_probability_bin(probability)}"
        if sampler.greedy:
            probability **= _GREEDY_EXPONENT  # the trunk takes its highest byte more often than it would sample it
        probability = self._calibration.share(kind, min(max(probability, 1e-4), 0.999))
        source = LOOKUP if agree and math.exp(log_probs_V[best]) < weight else depth + 1
        return Candidate(best, source, probability, path_probability * probability, kind, lookup, against)

    def observe(self, draft: Sequence[Candidate], choices: Sequence[int], cost_of_heads: float) -> None:
        """Count what became of a draft.

        Args:
            draft: As verified.
            choices: Ids that the trunk chose: those of the accepted candidates, and one more.
            cost_of_heads: Cost of all draft heads, in plain steps.
        """
        if self._asked:
            helped = sum(candidate.source > TRUNK for candidate in draft[: len(choices) - 1])
            self._gain = 0.8 * self._gain + 0.2 * helped
            if self._gain < cost_of_heads:  # less than the bytes that plain steps give in the same time
                self._pause = min(2 * self._pause + 2, _LONGEST_PAUSE)
                self._wait, self._gain = self._pause, 2 * cost_of_heads
            elif helped:
                self._pause = 0
        for candidate, chosen in zip(draft, choices, strict=False):
            if candidate.kind is not None:
                self._calibration.observe(candidate.kind, right=chosen == candidate.identifier)
            if candidate.lookup is not None:
                self._calibration.observe(candidate.lookup[1], right=chosen == candidate.lookup[0])
                if candidate.against is not None:
                    self._calibration.observe(candidate.against, right=chosen == candidate.lookup[0])


def select_drafts(
    proposals: Sequence[list[Candidate]],
    policy: DraftPolicy,
    cost: StepCost,
    rate: float,
    *,
    round_rows: Callable[[int], int] = lambda rows: rows,
) -> list[list[Candidate]]:
    """The beginning of each chain that is worth its rows: of all chains the same length, or the whole chain.

    Each sequence has as many rows in a pass as the longest draft needs, so that shorter drafts would save nothing.

    Args:
        proposals: Chain of each sequence.
        policy: ``adaptive`` weighs; the others take all that they propose, up to a fixed length.
        cost: Of a step.
        rate: Bytes per second that decoding runs at, in the unit of ``cost``.
        round_rows: Rows of each sequence in a pass where the longest needs so many.
    """
    if policy != "adaptive":
        limit = {"heads": MOST_DRAFTS, "ngram": _MOST_LOOKUP_DRAFTS, "none": 0}[policy]
        return [proposal[:limit] for proposal in proposals]

    def seconds(length: int) -> float:
        return cost.of(len(proposals) * round_rows(1 + length), len(proposals))

    best_length, best_value, expected = 0, -rate * seconds(0), 0.0
    for length in range(1, min(MOST_DRAFTS, max(map(len, proposals))) + 1):
        expected += sum(proposal[length - 1].path_probability for proposal in proposals if len(proposal) >= length)
        value = expected - rate * seconds(length)
        if value > best_value + 1e-9:
            best_length, best_value = length, value
    return [proposal[:best_length] for proposal in proposals]


def _probability_bin(probability: float) -> int:
    return min(12, int(-2.0 * math.log(1.0 - probability + 1e-4)))


def _match_bin(length: int) -> int:
    return max(least for least, _ in _PRIOR_OF_MATCH if length >= least)


def _prior_of_match(length: int, priors: tuple[tuple[int, float], ...] = _PRIOR_OF_MATCH) -> float:
    return max(share for least, share in priors if length >= least)
