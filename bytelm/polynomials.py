"""Algorithmic reasoning with polynomials over F7[X]/(X^5): data of any size and difficulty from a seed.

A polynomial is written as five digits, constant first: 12003 is 1 + 2X + 3X^4. Operations are the unary −, and +, ×
and ∘ (f∘g is f of g), written ``-``, ``+``, ``*`` and ``@``; what an operation takes is in brackets. An example is an
expression, ``=`` and its value, such as ``(10000+(-30000))=50000``.

Source: Gloeckle et al. 2024, arXiv 2404.19737, section 4.2.
"""

import random
from typing import Final

DEGREES: Final = 5
PRIME: Final = 7
OPERATIONS: Final = "-+*@"
MOST_IN_TRAINING: Final = 5

Polynomial = tuple[int, ...]


def example(draw: random.Random, operations: int) -> tuple[str, str]:
    """An expression with as many operations, and its value.

    Args:
        draw: Decides everything.
        operations: From 0.

    Example:
        >>> example(random.Random(1), 1)
        ('(20363+35361)', '55654')
    """
    text, value = _expression(draw, operations)
    return text, written(value)


def training_example(draw: random.Random) -> str:
    """A line to learn from: one to five operations, equally often."""
    expression, value = example(draw, draw.randint(1, MOST_IN_TRAINING))
    return f"{expression}={value}\n"


def written(polynomial: Polynomial) -> str:
    """Five digits, constant first."""
    return "".join(map(str, polynomial))


def negative(f: Polynomial) -> Polynomial:
    """−f."""
    return tuple(-a % PRIME for a in f)


def total(f: Polynomial, g: Polynomial) -> Polynomial:
    """f + g."""
    return tuple((a + b) % PRIME for a, b in zip(f, g, strict=True))


def product(f: Polynomial, g: Polynomial) -> Polynomial:
    """f × g, without what X^5 divides.

    Example:
        >>> product((1, 1, 0, 0, 0), (1, 6, 0, 0, 0)), product((0, 0, 0, 1, 0), (0, 0, 1, 0, 0))
        ((1, 0, 6, 0, 0), (0, 0, 0, 0, 0))
    """
    return tuple(sum(f[i] * g[degree - i] for i in range(degree + 1)) % PRIME for degree in range(DEGREES))


def composition(f: Polynomial, g: Polynomial) -> Polynomial:
    """f∘g, without what X^5 divides.

    Example:
        >>> composition((0, 0, 1, 0, 0), (1, 1, 0, 0, 0))  # the square of 1 + X
        (1, 2, 1, 0, 0)
    """
    value: Polynomial = (0,) * DEGREES
    for coefficient in reversed(f):
        value = total(product(value, g), (coefficient, *(0,) * (DEGREES - 1)))
    return value


def _expression(draw: random.Random, operations: int) -> tuple[str, Polynomial]:
    if operations == 0:
        polynomial = tuple(draw.randrange(PRIME) for _ in range(DEGREES))
        return written(polynomial), polynomial
    operation = draw.choice(OPERATIONS)
    if operation == "-":
        text, value = _expression(draw, operations - 1)
        return f"(-{text})", negative(value)
    left = draw.randrange(operations)
    (first, f), (second, g) = _expression(draw, left), _expression(draw, operations - 1 - left)
    combined = {"+": total, "*": product, "@": composition}[operation](f, g)
    return f"({first}{operation}{second})", combined
