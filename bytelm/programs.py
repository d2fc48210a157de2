"""HumanEval and MBPP: what a model is asked to write, where it stops, and how what it wrote is tested.

HumanEval: the model goes on after a function's head and docstring, to the first line that is no part of it any more
(Chen et al. 2021, arXiv 2107.03374, section 2.3). MBPP: a docstring with the task and its tests, then the code; its
problems 11 … 510 are the ones to test on (Austin et al. 2021, arXiv 2108.07732, section 2.1).
"""

import ast
import builtins
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bytelm.errors import SourceError
from bytelm.task_data import DataSet, Row, field_of, text_of, texts_of

HUMANEVAL_STOPS: Final = (b"\nclass", b"\ndef", b"\n#", b"\nif", b"\nprint", b"\n@", b"\nassert")
MBPP_STOPS: Final = (b"\nclass", b"\nassert", b'\n"""', b"\nprint", b"\nif", b"\n#")
_MBPP_TEST_IDS: Final = range(11, 511)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something to be programmed.

    Attributes:
        name: Of the problem.
        prompt: What the model goes on from.
        before: What stands before its continuation in the program.
        setup: What the tests need besides.
        tests: Source that raises where the program is wrong.
        functions: Names of the program that the tests use.
    """

    name: str
    prompt: str
    before: str
    setup: str
    tests: str
    functions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ProgramTask:
    """One of the two sets.

    Attributes:
        source: Its data.
        problems: Makes problems of rows.
        stops: Strings before which a continuation ends.
    """

    source: DataSet
    problems: Callable[[list[Row]], list[Problem]]
    stops: tuple[bytes, ...]


def humaneval_problems(rows: list[Row]) -> list[Problem]:
    """Problems of HumanEval's rows.

    Raises:
        SourceError: A row lacks a field.
    """
    problems = []
    for number, row in enumerate(rows, start=1):
        prompt, name, entry, test = (
            text_of(row, [field], "humaneval", number) for field in ("prompt", "task_id", "entry_point", "test")
        )
        tests = f"{test}\ncheck({entry})\n"
        setup = prompt if parses(prompt) else ""  # helpers stand before the head, which its docstring makes whole
        problems.append(Problem(name=name, prompt=prompt, before=prompt, setup=setup, tests=tests, functions=(entry,)))
    return problems


def mbpp_problems(rows: list[Row]) -> list[Problem]:
    """Problems of MBPP's rows, original or sanitized: the test split, or all where no row belongs to it.

    Raises:
        SourceError: A row lacks a field.
    """
    numbered = [(_mbpp_id(row, number), number, row) for number, row in enumerate(rows, start=1)]
    wanted = [one for one in numbered if one[0] in _MBPP_TEST_IDS] or numbered
    problems = []
    for name, number, row in wanted:
        text = text_of(row, ["text", "prompt"], "mbpp", number).strip()
        tests = texts_of(row, ["test_list"], "mbpp", number)
        imports = texts_of(row, ["test_imports"], "mbpp", number) if row.get("test_imports") else []
        begin = text_of(row, ["test_setup_code"], "mbpp", number) if row.get("test_setup_code") else ""
        setup = "\n".join([*imports, begin]).strip() + "\n"
        joined = "\n".join(tests)
        code = text_of(row, ["code"], "mbpp", number) if row.get("code") else ""
        functions = _functions(joined, setup, code)
        modules = [name for name in functions if name in sys.stdlib_module_names]
        setup = "".join(f"import {name}\n" for name in modules) + setup
        problems.append(
            Problem(
                name=str(name),
                prompt=f'"""\n{text}\n{joined}\n"""\n',
                before=setup,
                setup=setup,
                tests=joined + "\n",
                functions=tuple(name for name in functions if name not in modules),
            )
        )
    return problems


PROGRAM_TASKS: Final = {
    "humaneval": ProgramTask(
        source=DataSet(files=("HumanEval.jsonl.gz", "HumanEval.jsonl"), hub="openai/openai_humaneval"),
        problems=humaneval_problems,
        stops=HUMANEVAL_STOPS,
    ),
    "mbpp": ProgramTask(
        source=DataSet(
            files=("mbpp.jsonl", "sanitized-mbpp.json"),
            hub="google-research-datasets/mbpp",
            config="full",
            split="test",
        ),
        problems=mbpp_problems,
        stops=MBPP_STOPS,
    ),
}


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Probability that at least one of k programs, drawn from all without putting back, is right: unbiased.

    Args:
        samples: Programs of the problem, at least k.
        right: Those that passed.
        k: From 1.

    Source:
        Chen et al. 2021, arXiv 2107.03374, equation 1.

    Example:
        >>> pass_at_k(4, 1, 2)
        0.5
    """
    assert 1 <= k <= samples
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def parses(program: str) -> bool:
    """Whether a program is Python at all; nothing of it is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strange escapes in strings
            ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _mbpp_id(row: Row, number: int) -> int:
    value = field_of(row, ["task_id"], "mbpp", number)
    if not str(value).isdecimal():
        raise SourceError(
            f"row {number} of the data of task mbpp has the task_id {value!r}, which is no number; get it again"
        )
    return int(value)


def _functions(tests: str, setup: str, reference: str) -> list[str]:
    """Names that tests use of the program: those that the reference defines, and those that nobody else has."""
    try:
        trees = [ast.parse(tests), ast.parse(setup), ast.parse(reference)]
    except SyntaxError as error:
        raise SourceError(f"the data of task mbpp holds tests that are no Python ({error}); get it again") from error
    known = (set(dir(builtins)) | _bound_names(trees[0]) | _bound_names(trees[1])) - {
        node.name for node in trees[2].body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    used = [node.id for node in ast.walk(trees[0]) if isinstance(node, ast.Name)]
    return list(dict.fromkeys(name for name in used if name not in known))


def _bound_names(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
    return names
