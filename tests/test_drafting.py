"""The planner takes what pays and no more; what is known of earlier drafts is counted right."""

import itertools
import random

import numpy as np
import pytest

from bytelm.drafting import MOST_NODES, PAST, Calibration, Candidate, Drafter, RowRule, StepCost, plan, prior_cost
from bytelm.generation import GenerateSettings
from bytelm.vocab import EOD, VOCABULARY_SIZE

COST = prior_cost("cpu", heads=0.1)


def drafter(policy: str = "adaptive", data: bytes = b"", **settings: float) -> tuple[Drafter, GenerateSettings]:
    asked = GenerateSettings(**settings)  # pyright: ignore[reportArgumentType]  # names and numbers
    return Drafter(asked.law(), policy, Calibration(), data), asked  # pyright: ignore[reportArgumentType]


def candidate(parent: int, reach: float) -> Candidate:
    return Candidate(parent, 65, 1, reach, None, reach)


def trees(count: int, seed: int) -> list[list[Candidate]]:
    """Random trees whose nodes are likelier to be reached than their children."""
    source, found = random.Random(seed), []
    for _ in range(count):
        nodes: list[Candidate] = []
        for index in range(source.randint(0, 6)):
            parent = source.randint(-1, index - 1)
            above = 1.0 if parent < 0 else nodes[parent].reach
            nodes.append(candidate(parent, above * source.choice((0.2, 0.5, 0.9, 1.0))))
        found.append(nodes)
    return found


@pytest.mark.parametrize("seed", range(30))
def test_no_other_tree_pays_more_than_the_planned_one(seed: int) -> None:
    proposals = trees(seed % 3 + 1, seed)
    stairs = StepCost((1, 4, 5, 8, 9, 16, 24), (1.0, 1.0, 1.4, 1.4, 1.5, 2.5, 4.0), 0.1)
    rule = RowRule(whole=4)
    rate = 1.0

    def worth(counts: list[int], reach: float) -> float:
        return len(proposals) + reach - rate * stairs.of(rule.total([1 + count for count in counts]), len(proposals))

    planned = plan(proposals, "adaptive", stairs, rate, rows=rule)
    found = worth([len(draft.nodes) for draft in planned], sum(node.reach for one in planned for node in one.nodes))
    flat = [(place, index) for place, nodes in enumerate(proposals) for index in range(len(nodes))]
    best = -1e9
    for size in range(min(len(flat), 9) + 1):
        for chosen in itertools.combinations(flat, size):
            taken = set(chosen)
            if all(proposals[p][i].parent < 0 or (p, proposals[p][i].parent) in taken for p, i in chosen):
                counts = [sum(p == place for p, _ in chosen) for place in range(len(proposals))]
                best = max(best, worth(counts, sum(proposals[p][i].reach for p, i in chosen)))
    assert found >= best - 1e-9 or len(flat) > 9


def test_what_gains_nothing_is_not_drafted() -> None:
    dear = StepCost((1, 2, 8), (1.0, 2.0, 8.0), 0.0)
    (draft,) = plan([[candidate(-1, 0.5), candidate(0, 0.4)]], "adaptive", dear, 1.0, rows=RowRule())
    assert draft.nodes == []
    (draft,) = plan([[candidate(-1, 0.9)]], "none", dear, 1.0, rows=RowRule())
    assert draft.nodes == []


def test_a_planned_draft_has_its_chain_first_and_parents_before_children() -> None:
    for seed in range(50):
        for draft in plan(trees(2, seed), "adaptive", prior_cost("cuda", heads=0.1), 1.0, rows=RowRule()):
            assert all(node.parent < index for index, node in enumerate(draft.nodes))
            assert all(draft.nodes[index].parent == index - 1 for index in range(draft.chain))
            cut = draft.cut(2)
            assert len(cut.nodes) <= 2
            assert cut.chain <= len(cut.nodes)


def test_rows_are_rounded_for_each_sequence_and_for_all() -> None:
    assert RowRule(sequence=2, whole=4).padded([1, 3, 2]) == [2, 4, 2]
    assert RowRule(sequence=2, whole=4).padded([1, 3]) == [2, 6]
    assert RowRule().padded([1, 3]) == [1, 3]
    assert RowRule(least=8, fixed=True).padded([1, 3]) == [8, 8]


def test_cost_is_a_line_between_what_was_measured_and_behind_it() -> None:
    cost = StepCost((1, 4, 8), (1.0, 1.0, 3.0), 0.2, 0.5)
    assert [cost.of(rows) for rows in (1, 2, 4, 6, 8, 10)] == [1.0, 1.0, 1.0, 2.0, 3.0, 4.0]
    assert cost.of(4, sequences=3) == 2.0


def test_the_past_goes_on_where_the_heads_end() -> None:
    one, asked = drafter(data=b"0123456789 abcdefghijk 0123456789 abc")
    node = asked.law().first_node(b"")
    logits_KV = np.zeros((2, VOCABULARY_SIZE), np.float32)
    logits_KV[[0, 1], [ord("d"), ord("e")]] = 9.0
    nodes = one.candidates(logits_KV, [], node, 8)
    chain = [node for index, node in enumerate(nodes) if node.parent == index - 1]
    assert bytes(node.identifier for node in chain[:8]) == b"defghijk"
    assert {node.source for node in chain[2:8]} == {PAST}
    assert all(later.reach <= earlier.reach for earlier, later in itertools.pairwise(chain))
    assert len(nodes) <= 8 + 2 * 8
    alone, _ = drafter("ngram", b"0123456789 abcdefghijk 0123456789 abc")
    assert bytes(node.identifier for node in alone.candidates(None, [], node, 5)) == b"defgh"


def test_an_end_of_document_and_what_is_behind_it_is_not_drafted() -> None:
    one, asked = drafter("heads")
    logits_KV = np.zeros((4, VOCABULARY_SIZE), np.float32)
    logits_KV[[0, 1, 2, 3], [65, 66, EOD, 67]] = 1.0
    node = asked.law().first_node(b"")
    assert [node.identifier for node in one.candidates(logits_KV, [], node, 9)] == [65, 66]
    assert one.candidates(logits_KV, [EOD], node, 9) == []
    assert [node.identifier for node in one.candidates(logits_KV, [7, 8], node, 3)] == [7, 8, 65]


@pytest.mark.parametrize("policy", ["adaptive", "ngram"])
def test_a_byte_that_can_never_be_chosen_is_not_drafted(policy: str) -> None:
    one, asked = drafter(policy, b"abcd\xb1 abcd", utf8=True)
    node = asked.law().first_node(b"abcd")
    logits_KV = np.zeros((4, VOCABULARY_SIZE), np.float32)
    for logits in (None, logits_KV):
        for candidate in one.candidates(logits, [], node, 8):
            assert candidate.identifier != 0xB1  # what followed the last time, which is no UTF-8
    unconstrained, asked = drafter(policy, b"abcd\xb1 abcd")
    assert unconstrained.candidates(None, [], asked.law().first_node(b"abcd"), 8)[0].identifier == 0xB1


def test_heads_that_are_no_numbers_draft_nothing() -> None:
    one, asked = drafter("heads")
    logits_KV = np.full((4, VOCABULARY_SIZE), np.nan, np.float32)
    assert one.candidates(logits_KV, [], asked.law().first_node(b""), 9) == []


def test_heads_that_never_help_are_asked_now_and_then() -> None:
    one, asked = drafter()
    node, asked_for = asked.law().first_node(b""), 0
    logits_KV = np.zeros((3, VOCABULARY_SIZE), np.float32)
    for _ in range(400):
        nodes = one.candidates(logits_KV, [], node, 3)
        (draft,) = plan([nodes], "adaptive", COST, 1.0, rows=RowRule())
        one.observe(draft, [200], COST)  # never what was drafted
        asked_for += one.wants_heads()
    assert 3 < asked_for < 80


def test_shares_move_from_the_guess_to_what_was_seen() -> None:
    calibration = Calibration()
    assert calibration.share("new", 0.3) == pytest.approx(0.3)
    for _ in range(300):
        calibration.observe("new", right=True)
    assert calibration.share("new", 0.3) > 0.85
    for _ in range(300):
        calibration.observe("new", right=False)
    assert calibration.share("new", 0.3) < 0.15


def test_a_draft_as_long_as_a_pass_keeps_no_other_sequence_from_its_own() -> None:
    long = [candidate(index - 1, 1.0) for index in range(60)]
    short = [candidate(index - 1, 0.9) for index in range(5)]
    first, second = plan([long, short], "adaptive", StepCost((1, 128), (1.0, 1.0), 0.0), 1.0, rows=RowRule())
    assert (len(first.nodes), len(second.nodes)) == (MOST_NODES, 5)


def test_no_draft_is_longer_than_a_pass() -> None:
    one, asked = drafter(data=b"abc" * 400)
    nodes = one.candidates(None, [], asked.law().first_node(b""), 400)
    (draft,) = plan([nodes], "adaptive", StepCost((1, 64), (1.0, 1.0), 0.0), 1.0, rows=RowRule())
    assert len(draft.nodes) == MOST_NODES
