"""The tasks ``humaneval`` and ``mbpp``: programs that the model writes, and how many of them pass their tests.

The protocol of Gloeckle et al. 2024: n samples for each problem, a temperature for each k, unbiased pass@k. Every
sample has noise of its own, made from the problem, the temperature and its number, so the same command gives the same
programs, in whatever order and however often it was interrupted: what is written is kept, line by line.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from bytelm import sandbox
from bytelm.errors import SourceError, StorageError
from bytelm.files import refusals_named
from bytelm.programs import PROGRAM_TASKS, Problem, parses, pass_at_k
from bytelm.task import Request, Result, cut_prompts, longer_than
from bytelm.task_data import drawn, read_rows

_MAX_BYTES: Final = 1024
_SIDE_BY_SIDE: Final = 8
_WRITTEN: Final = {"problem", "temperature", "sample", "parses", "finish_reason", "bytes", "steps"}
_Key = tuple[str, float, int]


def humaneval(request: Request) -> Result:
    """See ``programs``."""
    return programs("humaneval", request)


def mbpp(request: Request) -> Result:
    """See ``programs``."""
    return programs("mbpp", request)


def programs(task: str, request: Request) -> Result:
    """Write programs, and run them where that is asked for.

    Raises:
        SourceError: The data cannot be had, or what was written before is damaged.
        ConfigError: Programs are to be run, and this system does not isolate them.
    """
    kind = PROGRAM_TASKS[task]
    if request.run_code:
        sandbox.require()  # before hours of writing
    rows = read_rows(kind.source, request.data, task)
    problems = drawn(kind.problems(rows), request.limit, request.seed)
    temperatures = sorted({temperature for _, temperature in request.pass_at})
    wanted = [
        (problem, temperature, number)
        for temperature in temperatures
        for problem in problems
        for number in range(request.samples)
    ]
    max_bytes = request.max_bytes or _MAX_BYTES
    with _Kept(request, task, max_bytes) as kept:
        done = 0
        for temperature in temperatures:
            for problem in problems:
                for first in range(0, request.samples, _SIDE_BY_SIDE):
                    numbers = range(first, min(first + _SIDE_BY_SIDE, request.samples))
                    request.progress(done, len(wanted))
                    if any((problem.name, temperature, number) not in kept.records for number in numbers):
                        for record in _write(request, problem, temperature, numbers, kind.stops, max_bytes):
                            kept.add(record)
                    done += len(numbers)
        if request.run_code:
            _judge_all(request, wanted, kept)
        records = {key: kept.records[key] for key in ((one.name, t, n) for one, t, n in wanted)}
    return _summary(task, request, problems, records)


def _write(
    request: Request,
    problem: Problem,
    temperature: float,
    numbers: range,
    stops: tuple[bytes, ...],
    max_bytes: int,
) -> Iterator[dict[str, Any]]:
    """Some samples of a problem; each is what it would be alone."""
    seed = hashlib.sha256(f"{request.seed} {problem.name} {temperature}".encode()).digest()
    written = request.model.generate_batch(
        [problem.prompt] * len(numbers),
        max_bytes=max_bytes,
        temperature=temperature,
        seed=int.from_bytes(seed[:8], "big") >> 1,
        sequence=numbers[0],
        stop=stops,
    )
    for number, found in zip(numbers, written, strict=True):
        record: dict[str, Any] = {"problem": problem.name, "temperature": temperature, "sample": number}
        try:
            record["completion"] = found.data.decode("utf-8")
            record["parses"] = parses(problem.before + record["completion"])
        except UnicodeDecodeError:
            record |= {"completion_hex": found.data.hex(), "parses": False}
        yield record | {"finish_reason": found.finish_reason, "bytes": len(found.data), "steps": found.steps}


def _judge_all(request: Request, wanted: list[tuple[Problem, float, int]], kept: "_Kept") -> None:
    waiting = [
        (problem, record)
        for problem, temperature, number in wanted
        if "passed" not in (record := kept.records[problem.name, temperature, number])
    ]
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        judged = pool.map(lambda pair: _judge(*pair), waiting)
        for done, record in enumerate(judged):
            kept.add(record)
            request.progress(done, len(waiting))


def _judge(problem: Problem, record: dict[str, Any]) -> dict[str, Any]:
    if not record["parses"]:  # no need to start it
        return {**record, "passed": False, "reason": "no Python"}
    program = problem.before + record["completion"]
    outcome = sandbox.run_tests(program, problem.tests, problem.functions, setup=problem.setup)
    return {**record, "passed": outcome.passed, "reason": outcome.reason}


def _summary(task: str, request: Request, problems: list[Problem], records: dict[_Key, dict[str, Any]]) -> Result:
    n = request.samples
    slots = request.model.context_bytes
    cut = longer_than(slots, (problem.prompt.encode() for problem in problems))
    facts: dict[str, Any] = {
        "problems": len(problems),
        "programs": n,
        "code_was_run": request.run_code,
        "parses": sum(record["parses"] for record in records.values()) / len(records),
        "bytes_per_step": sum(record["bytes"] for record in records.values())
        / max(1, sum(record["steps"] for record in records.values())),
        "prompts_longer_than_the_window": cut,
    }
    lines = [f"{task}: {n} programs for each of {len(problems)} problems; {facts['parses']:.1%} are Python"]
    lines += cut_prompts(cut, slots)
    if request.run_code:
        facts["pass_at"] = []
        for k, temperature in request.pass_at:
            rights = [sum(records[p.name, temperature, i]["passed"] for i in range(n)) for p in problems]
            value = sum(pass_at_k(n, right, k) for right in rights) / len(problems)
            facts["pass_at"].append({"k": k, "temperature": temperature, "value": value})
            lines.append(f"pass@{k} {value:.4f} at temperature {temperature:g}")
    else:
        lines.append("not run, so nothing is known of passing; --run-code runs them in a sandbox")
    return Result(facts=facts, lines=tuple(lines), samples=tuple(records.values()))


class _Kept:
    """Records of samples in a file of lines; a later line about the same sample takes the place of an earlier one."""

    def __init__(self, request: Request, task: str, max_bytes: int) -> None:
        self.records: dict[_Key, dict[str, Any]] = {}
        self._place: Path | None = None
        if request.folder is not None:
            origin = f"{request.checkpoint} {request.data} {request.seed} {max_bytes}"
            mark = hashlib.sha256(origin.encode()).hexdigest()[:8]
            self._place = request.folder / f"{task}-{Path(request.checkpoint).name}-{mark}.programs.jsonl"

    def __enter__(self) -> "_Kept":
        if self._place is not None:
            with refusals_named(self._place):
                try:
                    self._place.parent.mkdir(parents=True, exist_ok=True)
                except FileExistsError as error:
                    raise StorageError(f"cannot write into {self._place.parent}: it is a file; move it away") from error
                for record in self._sound_lines(self._place):
                    self.records[_key(record)] = record
                self._file = self._place.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self._place is not None:
            self._file.close()

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record, at once."""
        self.records[_key(record)] = record
        if self._place is not None:
            with refusals_named(self._place):
                self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
                self._file.flush()

    def _sound_lines(self, place: Path) -> Iterator[dict[str, Any]]:
        """Records of the file; what a kill has left of a last line is cut off."""
        if not place.exists():
            return
        content = place.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with place.open("r+b") as file:
                file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            record = _record(line)
            if record is None:
                raise SourceError(
                    f"{place} is damaged: line {number} is no program that was written; delete the line, or the file",
                    reason="damaged",
                )
            yield record


def _record(line: bytes) -> dict[str, Any] | None:
    """A record that was written; None for anything else."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # the latter of brackets in brackets without end
        return None
    if not isinstance(record, dict) or not record.keys() >= _WRITTEN:
        return None
    return record if "completion" in record or not record["parses"] else None


def _key(record: dict[str, Any]) -> _Key:
    return record["problem"], record["temperature"], record["sample"]
