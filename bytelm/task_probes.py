"""The tasks ``induction`` and ``arithmetic``: small worlds made from a seed, where heads that look ahead may help.

Both are for models that were trained on such data (``bytelm probe``); on others they say little. Test examples are
drawn from another stream of the seed than training examples.
"""

import random
from typing import Any, Final

from bytelm.likelihood import likelihoods
from bytelm.polynomials import MOST_IN_TRAINING, example
from bytelm.stories import story
from bytelm.task import Request, Result

_STORIES: Final = 100
_MOST_OPERATIONS: Final = 10
_EXPRESSIONS: Final = 200
"""Of each number of operations. The paper has 2,000; ``--limit 2000`` asks for as many."""


def induction(request: Request) -> Result:
    """Whether the second parts of names are known once they have been read."""
    draw = random.Random(f"induction test {request.seed}")
    stories = [story(draw) for _ in range(request.limit or _STORIES)]
    pairs = [(one.text[:begin].encode(), one.text[begin:end].encode()) for one in stories for begin, end in one.seconds]
    done = 0

    def after_batch(count: int) -> None:
        nonlocal done
        done += count
        request.progress(done, len(pairs))

    found = likelihoods(request.model.model, pairs, context_bytes=request.model.context_bytes, after_batch=after_batch)
    right = sum(one.is_greedy for one in found) / len(found)
    by_byte = sum(int(one.greedy.sum()) for one in found) / sum(len(one.greedy) for one in found)
    facts = {"stories": len(stories), "mentions": len(pairs), "accuracy": right, "accuracy_of_bytes": by_byte}
    line = f"induction: {right:.4f} of {len(pairs):,} second parts right, {by_byte:.4f} of their bytes"
    samples = [
        {"before": before.decode()[-80:], "second": second.decode(), "right": one.is_greedy}
        for (before, second), one in zip(pairs, found, strict=True)
    ]
    return Result(facts=facts, lines=(line,), samples=tuple(samples))


def arithmetic(request: Request) -> Result:
    """Whether values of expressions are right, by their number of operations; those above five are not trained."""
    draw = random.Random(f"arithmetic test {request.seed}")
    count = request.limit or _EXPRESSIONS
    by_operations: dict[str, float] = {}
    samples: list[dict[str, Any]] = []
    for operations in range(1, _MOST_OPERATIONS + 1):
        right = 0
        for _ in range(count):
            expression, value = example(draw, operations)
            found = request.model.generate(f"{expression}=", max_bytes=len(value) + 1, stop="\n")
            said = found.data.decode("utf-8", "backslashreplace")
            right += said == value
            samples.append({"expression": expression, "value": value, "said": said, "right": said == value})
            request.progress(len(samples), _MOST_OPERATIONS * count)
        by_operations[str(operations)] = right / count
    trained = [by_operations[str(m)] for m in range(1, MOST_IN_TRAINING + 1)]
    beyond = [by_operations[str(m)] for m in range(MOST_IN_TRAINING + 1, _MOST_OPERATIONS + 1)]
    facts = {
        "examples": len(samples),
        "accuracy": sum(trained) / len(trained),
        "accuracy_beyond_training": sum(beyond) / len(beyond),
        "by_operations": by_operations,
    }
    lines = (
        f"arithmetic: {facts['accuracy']:.4f} right with 1 … 5 operations, {facts['accuracy_beyond_training']:.4f} "
        f"with 6 … 10, over {count} expressions of each",
        "by operations: " + " ".join(f"{m}: {share:.3f}" for m, share in by_operations.items()),
    )
    return Result(facts=facts, lines=lines, samples=tuple(samples))
