"""Who proposes the next bytes, and how many proposals are worth their rows.

Sources, which combine in one tree of nodes:

    heads     heads 1 … K - 1 at the last accepted row: a chain of their best bytes, and their second-best as branches
    past      what followed the last time (``SuffixIndex``); it goes on where the heads end, behind the K-th byte
    branch    what the trunk itself chose behind a branch that was right: all but certain, see ``decode``

The heads know nothing of each other; a correction by the bytes drafted before (``pairs``) mends most of that.

Each node has a chance: that it is what the trunk chooses, its parent being right. It is estimated from the heads'
probabilities and the length of the match, and corrected by what became of earlier proposals of the same kind.

The planner takes nodes in the order of their chance of being reached and accepted, as many as pay: the expected bytes
of a step, less its cost at the rate that decoding runs at, are highest. The cost of a number of rows is a table of
stairs, so all numbers are tried. No gain, no draft.

Nothing here can change a byte: what is proposed is only ever compared with what the trunk chooses.

Shapes: K prediction heads, V vocabulary.

Source: Rows by expected gain over cost: Dinkelbach 1967; trees from heads: Cai et al. 2024, arXiv 2401.10774.
"""

import bisect
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from bytelm.law import Law, Node
from bytelm.pairs import PairCorrection
from bytelm.rejection import Probabilities, draft_law, draw
from bytelm.suffixes import SuffixIndex
from bytelm.vocab import EOD

DraftPolicy = Literal["adaptive", "heads", "tree", "ngram", "none"]

TRUNK: Final = 0
PAST: Final = -1
BRANCH: Final = -2
"""Sources of a byte; k >= 1 is head k."""

LEAST_REACH: Final = 0.03
"""What is reached less often is not looked at: on a CPU it never pays for its row, elsewhere hardly ever."""

MOST_NODES: Final = 47
"""Nodes of a draft at most: with its first id a pass has 48 rows."""

_TREE_NODES: Final = 15
_PAST_NODES: Final = 15
_BRANCH_CHANCE: Final = 0.98
_DECAY: Final = 0.98
_LONGEST_PAUSE: Final = 32
_SHARPER: Final = 0.6
_DRAWN_CHANCE: Final = 0.6
_PRIOR_WEIGHT: Final = 6.0

_PRIOR_OF_MATCH: Final = ((4, 0.35), (6, 0.5), (8, 0.6), (12, 0.7), (16, 0.8), (24, 0.9), (32, 0.95), (64, 0.98))
"""Share of right bytes after a match of so many bytes, before anything was seen."""


@dataclass(frozen=True, slots=True)
class Head:
    """One head's view of one byte.

    Attributes:
        log_law_V: Logarithm of its law, normalised, (257,).
        score_V: What the law's choice takes the highest of: with the noise of the position.
    """

    log_law_V: npt.NDArray[np.floating]
    score_V: npt.NDArray[np.floating]


@dataclass(slots=True)
class Candidate:
    """A node that may be drafted.

    Attributes:
        parent: Index among the candidates; -1 for the first id of the pass.
        identifier: Byte.
        source: ``PAST``, ``BRANCH`` or a head.
        chance: That it is right, its parent being right.
        kind: What it is counted under, or None.
        reach: That it is right and its parents too.
        past: The byte that the past proposed here, with its kind; None where it had nothing to say.
        drawn_from: The law that it was drawn from, where drafts are drawn.
    """

    parent: int
    identifier: int
    source: int
    chance: float
    kind: str | None
    reach: float
    past: tuple[int, str] | None = None
    drawn_from: Probabilities | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """Nodes to verify. The first ``chain`` follow each other from the first id; then come branches.

    Attributes:
        nodes: Parents before children; ``parent`` counts among these.
        chain: How many are the chain.
    """

    nodes: list[Candidate]
    chain: int

    @property
    def expected(self) -> float:
        """Bytes that the chain is expected to give, the trunk's own included."""
        return 1.0 + sum(node.reach for node in self.nodes[: self.chain])

    @property
    def parents(self) -> list[int] | None:
        """Parent rows for a pass whose row 0 is the first id; None where all is a chain."""
        return None if self.chain == len(self.nodes) else [-1, *(node.parent + 1 for node in self.nodes)]

    def child(self, row: int, identifier: int) -> int | None:
        """The row that reads an id after a row, if one was drafted."""
        for index, node in enumerate(self.nodes):
            if node.parent == row - 1 and node.identifier == identifier:
                return index + 1
        return None

    def cut(self, limit: int) -> "Draft":
        """The first nodes, branches last."""
        return Draft(self.nodes[:limit], min(self.chain, limit)) if len(self.nodes) > limit else self


@dataclass(slots=True)
class Calibration:
    """How often proposals of each kind were right: shares that follow the text, old ones fading.

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
    """What a step costs by the rows of its pass; any unit.

    Attributes:
        rows: Ascending, at least two.
        cost: Of a pass with so many rows; between them it is a straight line.
        heads: Of the draft heads at one row, and of weighing what they propose.
        sequence: Of each sequence beyond the first, whose attention is its own.
    """

    rows: tuple[int, ...]
    cost: tuple[float, ...]
    heads: float
    sequence: float = 0.0

    def of(self, rows: int, sequences: int = 1) -> float:
        """Cost of a pass."""
        place = min(max(bisect.bisect_left(self.rows, rows), 1), len(self.rows) - 1)
        slope = (self.cost[place] - self.cost[place - 1]) / (self.rows[place] - self.rows[place - 1])
        return self.cost[place - 1] + slope * (rows - self.rows[place - 1]) + self.sequence * (sequences - 1)


def prior_cost(device: str, *, heads: float) -> StepCost:
    """Cost of a step where nothing was measured: on a CPU a row takes a twentieth more, elsewhere hardly any.

    Args:
        device: torch's name of its type.
        heads: Cost of the draft heads at one row, a pass of 4 rows being 1.
    """
    slope = 0.045 if device == "cpu" else 0.003
    return StepCost((1, 4, 64), (1 - slope, 1.0, 1.0 + 60 * slope), heads)


class Drafter:
    """Proposes for one sequence.

    Args:
        law: Of the sequence.
        policy: Who may propose.
        calibration: Shared by all sequences of a run.
        data: Prompt; None where ids are no bytes, and the past is not looked at.
        pairs: Correction of the heads by the bytes that were drafted before; None for none.
    """

    def __init__(
        self,
        law: Law,
        policy: DraftPolicy,
        calibration: Calibration,
        data: bytes | None,
        pairs: PairCorrection | None = None,
    ) -> None:
        self._law, self._policy, self._calibration, self._pairs = law, policy, calibration, pairs
        # A draft of the highest byte is right more often than one of a drawn byte: they are counted apart.
        self._rule = "" if law.sampler.greedy else "drawn "
        self._past = SuffixIndex(data) if data is not None and policy in ("adaptive", "ngram") else None
        self._gain, self._pause, self._wait = 1.0, 0, 0  # bytes a step by the heads; steps without them
        self._asked = False

    def wants_heads(self) -> bool:
        """Whether to ask the heads after this step: where they hardly ever help, only now and then."""
        if self._policy == "adaptive" and self._wait > 0:
            self._wait -= 1
            self._asked = False
        else:
            self._asked = True
        return self._asked

    def extend(self, ids: Sequence[int]) -> None:
        """Ids that became certain."""
        if self._past is not None:
            self._past.extend(bytes(ids))

    def candidates(
        self, logits_KV: npt.NDArray[np.float32] | None, ahead: Sequence[int], node: Node, limit: int
    ) -> list[Candidate]:
        """Nodes that may follow the last id.

        Args:
            logits_KV: Of heads 1 … K - 1, which predict the ids behind ``ahead``; None where they were not asked.
            ahead: Ids that the trunk chose on the way but that are not certain yet.
            node: After the last certain id.
            limit: Nodes of a path, at most.

        Returns:
            Chain first, parents before children.
        """
        found: list[Candidate] = []
        reach = 1.0
        for identifier in ahead[:limit]:
            if identifier == EOD:
                return found
            kind = f"{self._rule}branch"
            chance = self._calibration.share(kind, _BRANCH_CHANCE)
            reach *= chance
            found.append(Candidate(len(found) - 1, identifier, BRANCH, chance, kind, reach))
            node = node.after(identifier)
        sides: list[Candidate] = []
        heads, begin = _Heads(self._law, logits_KV, node, self._pairs), node
        said, length = b"", 0  # what followed the last time, and after how many equal bytes
        drafted = b"".join(_byte(candidate.identifier) for candidate in found)
        for depth in range(limit - len(found)):
            head = heads.at(depth, node)
            if not said and self._past is not None and (head is not None or depth == 0):
                match = self._past.find(drafted)
                if match is not None:
                    said, length = self._past.following(match.place, limit - len(found), drafted), match.length
            if said and not self._law.permits(said[0], node):
                said = b""  # what can never be chosen
            if head is None and not said:
                break
            guess = (said[0], length) if said else None
            candidate, side = self._choose(head, guess, depth, node, len(found) - 1, reach)
            if side is not None:
                sides.append(side)
            if candidate is None or (self._policy == "adaptive" and candidate.reach < LEAST_REACH):
                break
            said, length = (said[1:] if said[:1] == _byte(candidate.identifier) else b""), length + 1
            reach = candidate.reach
            found.append(candidate)
            drafted += _byte(candidate.identifier)
            node = node.after(candidate.identifier)
        return self._with_sides(found, sides, heads, begin.recent, len(ahead))

    def drawn(
        self, logits_KV: npt.NDArray[np.float32] | None, node: Node, limit: int, random: np.random.Generator
    ) -> list[Candidate]:
        """A chain that is drawn from the heads' laws, for ``verify_block``; chances say nothing of what was drawn.

        Args:
            logits_KV: Of heads 1 … K - 1; None where they were not asked.
            node: After the last id.
            limit: Nodes at most.
            random: Draws.
        """
        found: list[Candidate] = []
        reach = 1.0
        for depth, logits_V in enumerate([] if logits_KV is None else logits_KV[: max(0, limit)]):
            pairs = self._pairs
            own_V = logits_V if pairs is None else pairs.corrected(depth, logits_V, node.recent)
            law_V = draft_law(self._law, own_V, node)
            if law_V is None:
                break
            kind = f"rejection {min(depth, 8)}"
            chance = self._calibration.share(kind, _DRAWN_CHANCE)
            reach *= chance
            identifier = draw(random, law_V)
            found.append(Candidate(depth - 1, identifier, depth + 1, chance, kind, reach, None, law_V))
            node = node.after(identifier)
        return found

    def _choose(
        self, head: Head | None, said: tuple[int, int] | None, depth: int, node: Node, parent: int, reach: float
    ) -> tuple[Candidate | None, Candidate | None]:
        """The best candidate of a depth, and the next best for a branch."""
        weight, guess, past = 0.0, -1, None
        if said is not None:
            guess, length = said
            past = (guess, f"{self._rule}past {_match_bin(length)}")
            weight = self._calibration.share(past[1], _prior_of_match(length))
        if head is None:
            return Candidate(parent, guess, PAST, weight, None, reach * weight, past), None
        best = int(head.score_V.argmax())
        second = -1

        def chance(identifier: int) -> float:
            # The two views as a mixture: what the past says with its weight, else the head's law.
            return weight * (identifier == guess) + (1.0 - weight) * math.exp(head.log_law_V[identifier])

        if past is not None and best != guess:
            second = guess
            if self._scores_more(guess, chance(guess), best, chance(best), node):
                best, second = guess, best
        if second < 0:
            rest_V = head.score_V.copy()
            rest_V[best] = -np.inf
            second = int(rest_V.argmax())
        side = None if second == EOD else self._candidate(parent, second, depth, chance(second), reach, "side")
        if best == EOD:
            return None, side
        agree = best == guess
        candidate = self._candidate(parent, best, depth, chance(best), reach, "agree" if agree else "head")
        candidate.past = past
        if agree and math.exp(head.log_law_V[best]) < weight:
            candidate.source = PAST
        return candidate, side

    def _scores_more(self, one: int, of_one: float, other: int, of_other: float, node: Node) -> bool:
        """Whether the law's rule of choice takes the first of two ids with these probabilities."""
        if self._law.sampler.greedy:
            return of_one > of_other
        noise_V = self._law.sampler.noise(node.position)
        return math.log(max(of_one, 1e-300)) + noise_V[one] > math.log(max(of_other, 1e-300)) + noise_V[other]

    def _candidate(self, parent: int, identifier: int, depth: int, chance: float, reach: float, what: str) -> Candidate:
        kind = f"{self._rule}{what} {min(depth, 8)} {_chance_bin(chance)}"
        if self._law.sampler.greedy and what != "side":
            chance **= _SHARPER  # the trunk takes its highest byte more often than it would draw it
        chance = self._calibration.share(kind, min(max(chance, 1e-4), 0.999))
        return Candidate(parent, identifier, depth + 1, chance, kind, reach * chance)

    def _with_sides(
        self, found: list[Candidate], sides: list[Candidate], heads: "_Heads", recent: bytes, ahead: int
    ) -> list[Candidate]:
        """Branches behind the chain, each with the next head's best byte behind it."""
        if self._policy not in ("adaptive", "tree") or self._law.constrained:
            return found
        for side in sides:
            if side.reach < LEAST_REACH and self._policy == "adaptive":
                continue
            before = _byte(found[side.parent].identifier) if side.parent >= 0 else recent[-1:]
            found.append(side)
            depth = side.parent + 2 - ahead  # of the byte behind the branch
            best = heads.best(depth, before + _byte(side.identifier))
            if best is not None and best[0] != EOD:
                kind = f"{self._rule}behind {min(depth, 8)}"
                chance = self._calibration.share(kind, 0.8 * best[1])
                found.append(Candidate(len(found) - 1, best[0], depth + 1, chance, kind, side.reach * chance))
        return found

    def observe(self, draft: Draft, choices: Sequence[int], cost: StepCost) -> None:
        """Count what became of a draft.

        Args:
            draft: As verified.
            choices: Ids that the trunk chose after the first id, and after each node of the chain that was right.
            cost: Of a step.
        """
        if self._asked:
            helped = sum(node.source > TRUNK for node in draft.nodes[: len(choices) - 1])
            self._gain = 0.8 * self._gain + 0.2 * helped
            if self._gain < cost.heads / cost.of(1):  # less than the bytes that a plain step gives in their time
                self._pause = min(2 * self._pause + 2, _LONGEST_PAUSE)
                self._wait, self._gain = self._pause, 2 * cost.heads / cost.of(1)
            elif helped:
                self._pause = 0
        observe = self._calibration.observe
        for node in draft.nodes:
            if node.parent + 1 < len(choices) and node.parent < draft.chain:
                chosen = choices[node.parent + 1]
                if node.kind is not None:
                    observe(node.kind, right=chosen == node.identifier)
                if node.past is not None:
                    observe(node.past[1], right=chosen == node.past[0])


class _Heads:
    """The heads' laws at the nodes that they predict."""

    def __init__(
        self, law: Law, logits_KV: npt.NDArray[np.float32] | None, node: Node, pairs: PairCorrection | None
    ) -> None:
        if logits_KV is not None and not np.isfinite(logits_KV).all():
            logits_KV = None  # heads that have diverged cost speed, not the output
        self._law, self._logits_KV, self._pairs, self._position = law, logits_KV, pairs, node.position
        self._log_law_KV: npt.NDArray[np.floating] | None = None
        if logits_KV is None or law.constrained or pairs is not None or not len(logits_KV):
            return
        self._log_law_KV, self._score_KV = _views(law, logits_KV, node.position)

    def at(self, depth: int, node: Node) -> Head | None:
        """The view of head ``depth`` + 1; None where there is no such head."""
        if self._logits_KV is None or depth >= len(self._logits_KV):
            return None
        if self._log_law_KV is not None:
            return Head(self._log_law_KV[depth], self._score_KV[depth])
        logits_V = self._law.logits(self._corrected(depth, node.recent), node)
        log_law_1V, score_1V = _views(self._law, logits_V[None], node.position)
        return Head(log_law_1V[0], score_1V[0])

    def best(self, depth: int, recent: bytes) -> tuple[int, float] | None:
        """The best byte of head ``depth`` + 1 and its probability; not where a law is constrained.

        Args:
            depth: Of the node.
            recent: Bytes before it, two at least where there are as many.
        """
        if self._logits_KV is None or depth >= len(self._logits_KV) or self._law.constrained:
            return None
        if self._log_law_KV is not None:
            log_law_V, score_V = self._log_law_KV[depth], self._score_KV[depth]
        else:
            views = _views(self._law, self._corrected(depth, recent)[None], self._position + depth)
            log_law_V, score_V = views[0][0], views[1][0]
        best = int(score_V.argmax())
        return best, math.exp(log_law_V[best])

    def _corrected(self, depth: int, recent: bytes) -> npt.NDArray[np.float32]:
        assert self._logits_KV is not None
        logits_V = self._logits_KV[depth]
        return logits_V if self._pairs is None else self._pairs.corrected(depth, logits_V, recent)


def _views(
    law: Law, logits_KV: npt.NDArray[np.float32], position: int
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
    score_KV = law.sampler.scores(logits_KV, position)
    base_KV = score_KV if law.sampler.greedy else law.sampler.log_law(logits_KV)
    shifted_KV = base_KV - base_KV.max(-1, keepdims=True)
    return shifted_KV - np.log(np.exp(shifted_KV).sum(-1, keepdims=True)), score_KV


def plan(
    proposals: Sequence[list[Candidate]], policy: DraftPolicy, cost: StepCost, rate: float, *, rows: "RowRule"
) -> list[Draft]:
    """Choose the nodes that are worth their rows.

    Args:
        proposals: Of each sequence; parents before children.
        policy: ``adaptive`` weighs; the others take what they always take.
        cost: Of the rows of all sequences together.
        rate: Bytes for a unit of cost that decoding runs at.
        rows: How rows are rounded.
    """
    if policy != "adaptive":
        limit = {"heads": MOST_NODES, "ngram": _PAST_NODES, "tree": _TREE_NODES, "none": 0}[policy]
        return [_draft(proposal, _best(proposal, limit)) for proposal in proposals]
    ranked = sorted(
        (
            (candidate.reach, sequence, index)
            for sequence, proposal in enumerate(proposals)
            for index, candidate in enumerate(proposal)
        ),
        key=lambda one: -one[0],
    )  # stable: a parent stays before a child that is as likely
    counts = [1] * len(proposals)
    expected = float(len(proposals))
    taken: list[tuple[int, int]] = []
    best_value, best_count = expected - rate * cost.of(rows.total(counts), len(proposals)), 0
    for reach, sequence, index in ranked:
        if reach < LEAST_REACH:
            break
        if counts[sequence] > MOST_NODES:
            continue
        counts[sequence] += 1
        taken.append((sequence, index))
        expected += reach
        value = expected - rate * cost.of(rows.total(counts), len(proposals))
        if value > best_value + 1e-9:
            best_value, best_count = value, len(taken)
    chosen: list[list[int]] = [[] for _ in proposals]
    for sequence, index in taken[:best_count]:
        chosen[sequence].append(index)
    return [_draft(proposal, indices) for proposal, indices in zip(proposals, chosen, strict=True)]


@dataclass(frozen=True, slots=True)
class RowRule:
    """How the rows of a pass are rounded up.

    Attributes:
        sequence: Rows of a sequence are a multiple of this.
        whole: Rows of the pass are a multiple of this.
        least: Rows of a sequence, at least.
        fixed: And at most.
    """

    sequence: int = 1
    whole: int = 1
    least: int = 1
    fixed: bool = False

    def of_sequence(self, rows: int) -> int:
        """Rows of one sequence."""
        return max(self.least, -(-rows // self.sequence) * self.sequence)

    def padded(self, counts: Sequence[int]) -> list[int]:
        """Rows of each sequence; what the whole lacks is added to the last."""
        rows = [self.of_sequence(count) for count in counts]
        rows[-1] += -sum(rows) % self.whole
        return rows

    def total(self, counts: Sequence[int]) -> int:
        """Rows of the pass."""
        return sum(self.padded(counts))


def _best(proposal: list[Candidate], limit: int) -> list[int]:
    """The likeliest nodes, a tree."""
    order = sorted(range(len(proposal)), key=lambda index: -proposal[index].reach)
    return order[:limit]


def _draft(proposal: list[Candidate], indices: list[int]) -> Draft:
    """Chosen nodes with the numbers that they get in the pass: chain first."""
    nodes: list[Candidate] = []
    place = {-1: -1}
    for index in sorted(indices):
        one = proposal[index]
        place[index] = len(nodes)
        nodes.append(dataclasses.replace(one, parent=place[one.parent]))
    return Draft(nodes, _chain(nodes))


def _chain(nodes: list[Candidate]) -> int:
    chain = 0
    while chain < len(nodes) and nodes[chain].parent == chain - 1:
        chain += 1
    return chain


def _byte(identifier: int) -> bytes:
    """The byte of an id; none where ids stand for several, and the past is not looked at."""
    return bytes((identifier,)) if identifier < EOD else b""


def _chance_bin(chance: float) -> int:
    return min(12, int(-2.0 * math.log(1.0 - chance + 1e-4)))


def _match_bin(length: int) -> int:
    return max(least for least, _ in _PRIOR_OF_MATCH if length >= least)


def _prior_of_match(length: int) -> float:
    return max(share for least, share in _PRIOR_OF_MATCH if length >= least)
