"""What the engine's drafts stand on, each against a few lines of Python: prompt lookup, costs, planner."""

import ctypes
import itertools
import random
from ctypes import POINTER, c_double, c_int32, c_int64, c_uint8
from typing import Any

import pytest

from bytelm.decoding.plan import DecodePlan
from bytelm.drafting import Calibration, StepCost
from bytelm.engine import CostTable
from bytelm.engine.library import load_library, unavailable_reason

pytestmark = pytest.mark.skipif(load_library() is None, reason=f"no engine: {unavailable_reason()}")


def _call(name: str, result: Any, *arguments: Any) -> Any:
    library = load_library()
    assert library is not None
    function = library.call(name)
    function.restype, function.argtypes = result, arguments
    return function


# Prompt lookup --------------------------------------------------------------------------------------------------------


def _found(text: bytes, drafted: bytes, count: int) -> tuple[int, int, bytes]:
    """Place, length and what follows, as the engine has them."""
    call = _call(
        "lookup_test",
        c_int32,
        c_uint8 * len(text),
        c_int64,
        c_uint8 * len(drafted),
        c_int32,
        c_int32,
        c_int32 * 2,
        c_uint8 * count,
    )
    match, following = (c_int32 * 2)(), (c_uint8 * count)()
    arrays = (c_uint8 * len(text))(*text), (c_uint8 * len(drafted))(*drafted)
    assert call(arrays[0], len(text), arrays[1], len(drafted), count, match, following) == 0
    return match[0], match[1], bytes(following)


def _wanted(text: bytes, drafted: bytes, count: int) -> tuple[int, int, bytes]:
    """The same by looking everywhere."""
    whole, best = text + drafted, (-1, 0)
    places = [place for place in range(4, len(text)) if len(whole) >= 4 and text[place - 4 : place] == whole[-4:]]
    for place in places[:-9:-1]:
        length = 4
        while length < min(64, place, len(whole)) and text[place - length - 1] == whole[-length - 1]:
            length += 1
        if length > best[1]:
            best = place, length
    again = text[best[0] :] + drafted
    return *best, bytes(again[i % len(again)] for i in range(count)) if best[1] else bytes(count)


def test_prompt_lookup_finds_the_longest_of_the_last_matches_and_what_followed() -> None:
    draw, matched = random.Random(1), 0
    for letters in (2, 3, 5, 20) * 60:
        text = bytes(draw.choices(range(letters), k=draw.randrange(0, 700)))
        cut = draw.randrange(0, len(text) + 1)
        drafted = text[cut : cut + draw.randrange(0, 30)]
        found = _found(text, drafted, 90)
        assert found == _wanted(text, drafted, 90)
        matched += found[1] > 0
    assert matched > 100


def test_prompt_lookup_goes_on_periodically() -> None:
    assert _found(b"xyzwxyzw", b"", 6) == (4, 4, b"xyzwxy")
    assert _found(b"xyzwxyzw", b"!xyzw", 10) == (8 - 4, 4, b"xyzw!xyzwx")


# Costs and planner ----------------------------------------------------------------------------------------------------


def _table(draw: random.Random) -> tuple[CostTable, dict[int, StepCost]]:
    """The same random costs for both sides."""
    table, pasts = CostTable(), sorted(draw.sample(range(5000), draw.randrange(1, 5)))
    rows = sorted(draw.sample(range(1, 40), draw.randrange(2, 7)))
    table.pasts, table.row_counts, table.head, table.sequence = len(pasts), len(rows), 0.01, draw.random()
    table.rows[: len(rows)] = rows
    costs = dict[int, StepCost]()
    for place, past in enumerate(pasts):
        seconds = sorted(1.0 + draw.choice((0.5, 5.0)) * draw.random() for _ in rows)  # stairs, not only slopes
        table.past[place] = past
        table.seconds[place][: len(rows)] = seconds
        costs[past] = StepCost(tuple(rows), tuple(seconds), 0.01, table.sequence)
    return table, costs


def _at(costs: dict[int, StepCost], past: int) -> StepCost:
    return DecodePlan(tuple(costs.items()), Calibration()).cost_at(past)


def test_costs_are_straight_lines_between_their_entries() -> None:
    call = _call("cost_test", c_double, POINTER(CostTable), c_int32, c_int32, c_int32)
    draw = random.Random(2)
    for _ in range(200):
        table, costs = _table(draw)
        past, rows, sequences = draw.randrange(6000), draw.randrange(1, 60), draw.randrange(1, 9)
        wanted = _at(costs, past).of(rows, sequences)
        assert call(ctypes.byref(table), past, rows, sequences) == pytest.approx(wanted, rel=1e-12)


def test_the_planner_takes_the_nodes_that_are_worth_most_of_all_sequences_together() -> None:
    draw, drafted, none = random.Random(3), 0, 0
    for _ in range(300):
        table, costs = _table(draw)
        past, rate, chains = draw.randrange(6000), draw.choice((0.05, 0.3, 1.0)), list[list[float]]()
        for _ in range(draw.randrange(1, 4)):
            chains.append(sorted((draw.random() ** 2 for _ in range(draw.randrange(0, 9))), reverse=True))
        cost, count = _at(costs, past), len(chains)

        def value(
            taken: tuple[int, ...], chains: list[list[float]] = chains, cost: StepCost = cost, rate: float = rate
        ) -> float:
            ids = sum(sum(chain[:own]) for chain, own in zip(chains, taken, strict=True))
            return ids - rate * cost.of(len(chains) + sum(taken), len(chains))

        found = _planned(table, past, rate, chains)
        lengths = [range(1 + sum(path >= 0.03 for path in chain)) for chain in chains]
        assert value(found) == pytest.approx(max(map(value, itertools.product(*lengths))), abs=1e-8)
        assert all(own <= len(length) - 1 for own, length in zip(found, lengths, strict=True))
        drafted, none = drafted + (sum(found) > 0), none + (sum(found) == 0 and count > 0)
    assert drafted > 50 and none > 20


def _planned(table: CostTable, past: int, rate: float, chains: list[list[float]]) -> tuple[int, ...]:
    """Nodes of each chain that the engine takes."""
    paths = list(itertools.chain(*chains))
    count, total = len(chains), len(paths)
    types = (POINTER(CostTable), c_int32, c_double, c_int32, c_int32 * count, c_double * total, c_int32 * count)
    taken = (c_int32 * count)()
    lengths = (c_int32 * count)(*map(len, chains))
    call = _call("plan_test", c_int32, *types)
    assert call(ctypes.byref(table), past, rate, count, lengths, (c_double * total)(*paths), taken) == 0
    return tuple(taken)
