import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytelm.polynomials import (
    DEGREES,
    OPERATIONS,
    PRIME,
    Polynomial,
    composition,
    example,
    negative,
    product,
    total,
    training_example,
    written,
)

POLYNOMIALS = st.tuples(*[st.integers(0, PRIME - 1)] * DEGREES)
ZERO, ONE, X = (0, 0, 0, 0, 0), (1, 0, 0, 0, 0), (0, 1, 0, 0, 0)


def multiplied(f: list[int], g: list[int]) -> list[int]:
    """All coefficients, of any degree."""
    whole = [0] * (len(f) + len(g) - 1)
    for i, a in enumerate(f):
        for j, b in enumerate(g):
            whole[i + j] += a * b
    return whole


@given(POLYNOMIALS, POLYNOMIALS)
def test_products_and_compositions_are_those_of_whole_polynomials_cut_and_reduced(f: Polynomial, g: Polynomial) -> None:
    assert product(f, g) == tuple(a % PRIME for a in multiplied(list(f), list(g))[:DEGREES])
    power, composed = [1], [0] * (DEGREES * DEGREES)
    for coefficient in f:
        for place, value in enumerate(power):
            composed[place] += coefficient * value
        power = multiplied(power, list(g))
    assert composition(f, g) == tuple(a % PRIME for a in composed[:DEGREES])


@given(POLYNOMIALS, POLYNOMIALS, POLYNOMIALS)
def test_the_ring_has_its_laws(f: Polynomial, g: Polynomial, h: Polynomial) -> None:
    assert total(f, negative(f)) == ZERO
    assert product(f, ONE) == f == composition(f, X)
    assert product(f, total(g, h)) == total(product(f, g), product(f, h))
    assert composition(total(f, g), h) == total(composition(f, h), composition(g, h))


def evaluated(text: str) -> Polynomial:
    """The value of an expression, read by another way than the one it was made in."""
    if text[0] != "(":
        return tuple(map(int, text))
    if text[1] == "-":
        return negative(evaluated(text[2:-1]))
    depth = 0
    for place, character in enumerate(text[1:-1], start=1):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0 and character in "+*@":
            left, right = evaluated(text[1:place]), evaluated(text[place + 1 : -1])
            return {"+": total, "*": product, "@": composition}[character](left, right)
    raise AssertionError(text)


@pytest.mark.parametrize("operations", range(11))
def test_expressions_have_their_operations_and_their_value(operations: int) -> None:
    draw = random.Random(operations)
    for _ in range(50):
        text, value = example(draw, operations)
        assert sum(text.count(operation) for operation in OPERATIONS) == operations
        assert written(evaluated(text)) == value


def test_a_seed_gives_the_same_examples_and_all_difficulties_are_trained() -> None:
    lines = [training_example(random.Random(number)) for number in range(400)]
    assert lines == [training_example(random.Random(number)) for number in range(400)]
    counts = [sum(line.count(operation) for operation in OPERATIONS) for line in lines]
    assert all(50 < counts.count(operations) < 110 for operations in range(1, 6))
    assert set(counts) == {1, 2, 3, 4, 5}
