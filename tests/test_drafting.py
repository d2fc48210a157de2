"""The planner takes what pays and no more; what is known of earlier drafts is counted right."""

import itertools
import random

import numpy as np
import pytest

from bytelm.drafting import LOOKUP, MOST_DRAFTS, Calibration, Candidate, Drafter, StepCost, prior_cost, select_drafts
from bytelm.generation import GenerateSettings
from bytelm.pair_correction import PairCorrection
from bytelm.sampling import CHOICES
from bytelm.vocab import EOD, VOCABULARY_SIZE

FLAT = StepCost((1, 128), (1.0, 1.0), 0.0)


def drafter(policy: str = "adaptive", data: bytes = b"", **settings: float) -> tuple[Drafter, GenerateSettings]:
    asked = GenerateSettings(**settings)  # pyright: ignore[reportArgumentType]  # names and numbers
    return Drafter(asked.next_byte(), policy, Calibration(), data), asked  # pyright: ignore[reportArgumentType]


def chain(*probabilities: float) -> list[Candidate]:
    paths = itertools.accumulate(probabilities, lambda path, probability: path * probability)
    return [Candidate(65, 1, one, path) for one, path in zip(probabilities, paths, strict=True)]


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("rounding", [1, 4])
def test_no_other_chains_pay_more_than_the_planned_ones(seed: int, rounding: int) -> None:
    source = random.Random(seed)
    proposals = [
        chain(*(source.choice((0.2, 0.5, 0.9, 1.0)) for _ in range(source.randint(0, 5)))) for _ in range(seed % 3 + 1)
    ]
    stairs = StepCost((1, 4, 5, 8, 9, 16, 24), (1.0, 1.0, 1.4, 1.4, 1.5, 2.5, 4.0), 0.1)

    def rounded(rows: int) -> int:
        return -(-rows // rounding) * rounding

    def worth(counts: tuple[int, ...]) -> float:
        rows = len(proposals) * rounded(1 + max(counts))
        expected = sum(one.path_probability for nodes, n in zip(proposals, counts, strict=True) for one in nodes[:n])
        return expected - stairs.of(rows, len(proposals))

    planned = select_drafts(proposals, "adaptive", stairs, 1.0, round_rows=rounded)
    assert all(draft == proposal[: len(draft)] for draft, proposal in zip(planned, proposals, strict=True))
    found = worth(tuple(len(draft) for draft in planned))
    every = list(itertools.product(*(range(len(proposal) + 1) for proposal in proposals)))
    assert found == pytest.approx(max(map(worth, every)))


def test_what_gains_nothing_is_not_drafted() -> None:
    expensive = StepCost((1, 2, 8), (1.0, 2.0, 8.0), 0.0)
    assert select_drafts([chain(0.5, 0.8)], "adaptive", expensive, 1.0) == [[]]
    assert select_drafts([chain(0.9)], "none", expensive, 1.0) == [[]]


def test_rows_that_another_sequence_pays_for_are_used() -> None:
    long, short = chain(*[0.99] * 6), chain(*[0.6] * 6)
    steep = StepCost((1, 64), (1.0, 17.0), 0.0)
    found = select_drafts([long, short], "adaptive", steep, 1.0)
    assert [len(draft) for draft in found] == [6, 6]
    assert select_drafts([short], "adaptive", steep, 1.0) != [short]


def test_cost_is_a_line_between_what_was_measured_and_behind_it() -> None:
    cost = StepCost((1, 4, 8), (1.0, 1.0, 3.0), 0.2, 0.5)
    assert [cost.of(rows) for rows in (1, 2, 4, 6, 8, 10)] == [1.0, 1.0, 1.0, 2.0, 3.0, 4.0]
    assert cost.of(4, sequences=3) == 2.0


def test_prompt_lookup_goes_on_where_the_heads_end() -> None:
    one, asked = drafter(data=b"0123456789 abcdefghijk 0123456789 abc")
    context = asked.next_byte().first_context(b"")
    logits_KV = np.zeros((2, VOCABULARY_SIZE), np.float32)
    logits_KV[[0, 1], [ord("d"), ord("e")]] = 9.0
    found = one.propose(logits_KV, context, 8)
    assert bytes(candidate.identifier for candidate in found) == b"defghijk"
    assert [candidate.source for candidate in found[:2]] == [1, 2]
    assert {candidate.source for candidate in found[2:]} == {LOOKUP}
    for earlier, later in itertools.pairwise(found):
        assert later.path_probability == pytest.approx(earlier.path_probability * later.probability)
    alone, _ = drafter("ngram", b"0123456789 abcdefghijk 0123456789 abc")
    assert bytes(candidate.identifier for candidate in alone.propose(None, context, 5)) == b"defgh"


def test_a_sure_lookup_outweighs_a_head_that_hesitates() -> None:
    one, asked = drafter(data=b"0123456789 abcdefghijk 0123456789 abc")
    context = asked.next_byte().first_context(b"")
    logits_KV = np.zeros((1, VOCABULARY_SIZE), np.float32)
    logits_KV[0, ord("x")] = 0.5
    assert one.propose(logits_KV, context, 1)[0].identifier == ord("d")
    logits_KV[0, ord("x")] = 30.0
    unsure, _ = drafter(data=b"9 abcd, and abc")
    assert unsure.propose(logits_KV, context, 1)[0].identifier == ord("x")


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_probabilities_and_kinds_are_the_stated_ones(temperature: float) -> None:
    one, asked = drafter("heads", temperature=temperature)
    logits_KV = np.zeros((1, VOCABULARY_SIZE), np.float32)
    logits_KV[0, 65] = 40.0 if temperature else 3.0
    context = asked.next_byte().first_context(b"")
    (candidate,) = one.propose(logits_KV, context, 1)
    sampled = np.exp(logits_KV[0, :CHOICES].astype(float) / (temperature or 1.0))
    probability = float(sampled[65] / sampled.sum())
    assert candidate.identifier == 65
    assert candidate.kind == (
        "drawn head 0 12" if temperature else f"head 0 {int(-2 * np.log(1 - probability + 1e-4))}"
    )
    expected = min(probability, 0.999) if temperature else probability**0.6
    assert candidate.probability == pytest.approx(expected)


def test_the_correction_knows_the_bytes_that_were_drafted() -> None:
    asked = GenerateSettings()
    tables = np.zeros((CHOICES, 1), np.float32), np.zeros((CHOICES, 1), np.float32), np.zeros((1, CHOICES), np.float32)
    tables[0][65] = 1.0
    tables[2][0, 66] = 50.0
    pairs = PairCorrection(*tables, np.ones(2, np.float32), np.ones(2, np.float32))
    logits_KV = np.zeros((2, VOCABULARY_SIZE), np.float32)
    logits_KV[0, 65], logits_KV[1, 67] = 9.0, 9.0
    for correction, expected in ((None, b"AC"), (pairs, b"AB")):
        one = Drafter(asked.next_byte(), "heads", Calibration(), b"", correction)
        found = one.propose(logits_KV, asked.next_byte().first_context(b""), 9)
        assert bytes(candidate.identifier for candidate in found) == expected


def test_an_end_of_document_and_what_is_behind_it_is_not_drafted() -> None:
    one, asked = drafter("heads")
    logits_KV = np.zeros((4, VOCABULARY_SIZE), np.float32)
    logits_KV[[0, 1, 2, 3], [65, 66, EOD, 67]] = 1.0
    context = asked.next_byte().first_context(b"")
    assert [candidate.identifier for candidate in one.propose(logits_KV, context, 9)] == [65, 66]
    assert [candidate.identifier for candidate in one.propose(logits_KV, context, 1)] == [65]
    assert one.propose(logits_KV, context, 0) == []


@pytest.mark.parametrize("policy", ["adaptive", "ngram"])
def test_a_byte_that_can_never_be_chosen_is_not_drafted(policy: str) -> None:
    one, asked = drafter(policy, b"abcd\xb1 abcd", utf8=True)
    context = asked.next_byte().first_context(b"abcd")
    logits_KV = np.zeros((4, VOCABULARY_SIZE), np.float32)
    for logits in (None, logits_KV):
        for candidate in one.propose(logits, context, 8):
            assert candidate.identifier != 0xB1  # what followed the last time, which is no UTF-8
    unconstrained, asked = drafter(policy, b"abcd\xb1 abcd")
    assert unconstrained.propose(None, asked.next_byte().first_context(b"abcd"), 8)[0].identifier == 0xB1


def test_heads_that_are_no_numbers_draft_nothing() -> None:
    one, asked = drafter("heads")
    logits_KV = np.full((4, VOCABULARY_SIZE), np.nan, np.float32)
    assert one.propose(logits_KV, asked.next_byte().first_context(b""), 9) == []


def test_heads_that_never_help_run_now_and_then() -> None:
    one, asked = drafter()
    context, ran = asked.next_byte().first_context(b""), 0
    logits_KV = np.zeros((3, VOCABULARY_SIZE), np.float32)
    for _ in range(400):
        (draft,) = select_drafts([one.propose(logits_KV, context, 3)], "adaptive", prior_cost("cpu", head=0.03), 1.0)
        one.observe(draft, [200], 0.1)  # never what was drafted
        ran += one.should_run_heads()
    assert 3 < ran < 80


def test_what_the_trunk_chose_is_counted_up_to_the_first_draft_that_was_wrong() -> None:
    calibration = Calibration()
    one = Drafter(GenerateSettings().next_byte(), "heads", calibration, b"")
    draft = [Candidate(byte, 1, 0.5, 0.5, f"kind {byte}", (67, f"past {byte}")) for byte in (65, 66, 67)]
    one.observe(draft, [65, 67], 0.1)
    assert calibration.counts == {
        "kind 65": (1.0, 1.0), "past 65": (0.0, 1.0), "kind 66": (0.0, 1.0), "past 66": (1.0, 1.0),
    }  # fmt: skip


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
    first, second = select_drafts([chain(*[1.0] * 60), chain(*[0.9] * 5)], "adaptive", FLAT, 1.0)
    assert (len(first), len(second)) == (MOST_DRAFTS, 5)
