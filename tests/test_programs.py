import itertools
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytelm.errors import SourceError
from bytelm.programs import humaneval_problems, mbpp_problems, parses, pass_at_k


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_all_draws_with_a_right_one(drawn: tuple[int, int, int]) -> None:
    samples, right, k = drawn
    programs = [True] * right + [False] * (samples - right)
    draws = list(itertools.combinations(programs, k))
    assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_of_many_programs_does_not_overflow() -> None:
    assert pass_at_k(200, 1, 100) == pytest.approx(0.5)
    assert pass_at_k(200, 0, 100) == 0.0
    assert pass_at_k(200, 150, 100) == 1.0
    assert math.isclose(pass_at_k(200, 20, 1), 0.1)


HUMANEVAL: dict[str, Any] = {
    "task_id": "Example/0",
    "prompt": 'def add(a, b):\n    """Sum."""\n',
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
}


def test_a_problem_of_humaneval_is_a_head_to_go_on_from_and_a_check() -> None:
    (problem,) = humaneval_problems([HUMANEVAL])
    assert problem.prompt == problem.before == HUMANEVAL["prompt"]
    assert problem.functions == ("add",)
    assert problem.tests.endswith("\ncheck(add)\n")


ORIGINAL: dict[str, Any] = {
    "task_id": 11,
    "text": "Write a function to add.",
    "code": "def add(a, b):\r\n  return a + b",
    "test_setup_code": "import math",
    "test_list": ["assert add(1, 2) == 3", "assert math.isclose(add(1, 0.5), 1.5)"],
    "challenge_test_list": [],
}
SANITIZED: dict[str, Any] = {
    "task_id": 12,
    "prompt": "Write a function to add.",
    "code": "import sys\ndef sum(a, b):\n  return a + b",
    "test_imports": ["import math"],
    "test_list": ["assert sum(1, 2) == 3", "assert math.isclose(sum(1, 0.5), 1.5)", "assert sys.getsizeof(sum(1, 1))"],
}


def test_both_formats_of_mbpp_make_problems() -> None:
    original, sanitized = mbpp_problems([ORIGINAL, SANITIZED])
    assert original.prompt == '"""\nWrite a function to add.\n' + "\n".join(ORIGINAL["test_list"]) + '\n"""\n'
    assert (original.name, original.functions, original.setup) == ("11", ("add",), "import math\n")
    assert sanitized.functions == ("sum",)  # also where it has the name of one of Python's own
    assert sanitized.setup == "import sys\nimport math\n"


def test_of_mbpp_the_test_split_is_taken_where_it_is_there() -> None:
    others = [{**ORIGINAL, "task_id": number} for number in (1, 511, 974)]
    assert [problem.name for problem in mbpp_problems([*others, ORIGINAL])] == ["11"]
    assert len(mbpp_problems(others)) == 3


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("task_id", "eleven", "row 1 of the data of task mbpp has the task_id 'eleven', which is no number"),
        ("task_id", True, "which is no number"),
        ("text", 5, "should have text in 'text' or 'prompt', found 5"),
        ("test_list", "assert add(1, 2) == 3", "should have a list of texts in 'test_list', found \"assert"),
        ("test_list", [], "should have a list of texts"),
        ("test_list", [None], "found null"),
        ("test_setup_code", ["import math"], "should have text in 'test_setup_code'"),
        ("test_imports", "import math", "should have a list of texts in 'test_imports'"),
        ("code", 3, "should have text in 'code'"),
    ],
)
def test_damaged_rows_of_mbpp_are_one_line(field: str, value: object, message: str) -> None:
    with pytest.raises(SourceError, match=re.escape(message)):
        mbpp_problems([{**ORIGINAL, field: value}])


def test_rows_of_another_task_are_refused() -> None:
    with pytest.raises(SourceError, match="should have text in 'test', found 1"):
        humaneval_problems([{**HUMANEVAL, "test": 1}])
    with pytest.raises(
        SourceError, match="row 2 of the data of task humaneval has no field 'entry_point', only 'prompt'"
    ):
        humaneval_problems([HUMANEVAL, {"prompt": "x", "task_id": "y"}])
    with pytest.raises(SourceError, match="has no field 'text' or 'prompt'"):
        mbpp_problems([{"task_id": 11}])
    with pytest.raises(SourceError, match="no Python"):
        mbpp_problems([{**ORIGINAL, "test_list": ["assert ("]}])


@pytest.mark.parametrize(
    ("program", "sound"),
    [("x = 1\n", True), ("x = '\\d'\n", True), ("def f(:\n", False), ("\0", False), ("(" * 5000, False), ("", True)],
)
def test_whether_a_program_is_python(program: str, sound: bool) -> None:
    assert parses(program) is sound
