"""Running generated programs: isolated, limited, killed in time, and judged by tests that they cannot reach.

A program runs in namespaces of its own: no network, no processes but its own, a file system of the standard library
(read-only) and a small ``/tmp`` that vanishes. It has no environment, no privileges, and limits on time, memory,
processes, files and output. Its tests run in another process, and the memory that the program has never held them
(``bytelm.sandbox_inside``). Where the system does not give all of this, nothing is run.

This keeps out what a language model may write. A kernel is not a wall against somebody who means it: for code of
people whom you do not trust, use a virtual machine.
"""

import json
import os
import selectors
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bytelm.errors import ConfigError

_INSIDE: Final = Path(__file__).with_name("sandbox_inside.py")
_SYSTEM_FOLDERS: Final = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
_GRACE_S: Final = 5.0  # after which a launcher that does not end is killed itself
_PIECE_BYTES: Final = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: By the clock, handing over the job and the start of the program included.
        processor_seconds: Of each process.
        memory_bytes: Address space of each process.
        processes: And threads, at a time.
        file_bytes: Of each file; all files together are at most 16 MiB.
        files: Open at a time.
        output_bytes: Written to standard output and error; a program that writes more is killed.
    """

    seconds: float = 10.0
    processor_seconds: int = 10
    memory_bytes: int = 512 << 20
    processes: int = 8
    file_bytes: int = 8 << 20
    files: int = 64
    output_bytes: int = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a program.

    Attributes:
        passed: All tests reached their end.
        reason: Why not; empty where it passed.
        output: What it wrote, at most the limit.
        elapsed_s: From start to end.
    """

    passed: bool
    reason: str
    output: bytes
    elapsed_s: float


def run_tests(
    program: str, tests: str, functions: Sequence[str], *, setup: str = "", limits: Limits | None = None
) -> Outcome:
    """Run a program and test its functions.

    Args:
        program: Python source.
        tests: Python source that raises where a function is wrong.
        functions: Names of the program that the tests use.
        setup: Python source that the tests need besides: imports and helpers.
        limits: The default ones where None.

    Raises:
        ConfigError: The system does not isolate, with the reason.
    """
    if sys.platform != "linux":
        raise ConfigError(_refusal(f"its system is {sys.platform}, and the sandbox is made of Linux namespaces"))
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="bytelm-sandbox-") as root:
        begin = time.monotonic()
        job = {
            "root": root,
            "shown": _shown(),
            "program": program,
            "deadline": begin + limits.seconds,  # of a clock that all processes share
            "limits": {
                "CPU": limits.processor_seconds,
                "AS": limits.memory_bytes,
                "NPROC": limits.processes,
                "FSIZE": limits.file_bytes,
                "NOFILE": limits.files,
                "CORE": 0,
            },
        }
        head = json.dumps(job).encode()
        checks = json.dumps({"tests": tests, "setup": setup, "functions": list(functions)}).encode()
        verdict, output, flooded = _launch(struct.pack("<I", len(head)) + head + checks, limits, begin, root)
    if "refused" in verdict:
        raise ConfigError(_refusal(str(verdict["refused"])))
    reason = "more output than is allowed" if flooded else str(verdict.get("failed", "the tests ended without a word"))
    passed = not flooded and verdict.get("passed") is True
    return Outcome(passed=passed, reason="" if passed else reason, output=output, elapsed_s=time.monotonic() - begin)


def require() -> None:
    """Check that programs can be isolated here.

    Raises:
        ConfigError: They cannot, with the reason.
    """
    outcome = run_tests("def one():\n    return 1\n", "assert one() == 1", ["one"], limits=Limits(seconds=60.0))
    if not outcome.passed:
        raise ConfigError(_refusal(outcome.reason))


def _refusal(reason: str) -> str:
    return (
        f"generated programs cannot be isolated on this machine ({reason}); use Linux with user namespaces, or leave "
        "out --run-code"
    )


def _shown() -> list[str]:
    """Folders that programs see: shared libraries and the standard library."""
    standard = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    shown: list[str] = []
    for path in [*_SYSTEM_FOLDERS, *map(os.path.realpath, standard)]:
        inside = any(path == seen or path.startswith(f"{seen}/") for seen in shown)
        if not inside and Path(path).exists():
            shown.append(path)
    return shown


def _launch(job: bytes, limits: Limits, begin: float, root: str) -> tuple[dict[str, object], bytes, bool]:
    """Verdict, output, and whether there was too much of it; ``root`` names the processes in the system's list."""
    verdict_read, verdict_write = os.pipe()
    launcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", _STARTER, str(verdict_write), str(_INSIDE), root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(verdict_write,),
        env={},
        cwd="/",
        start_new_session=True,
    )
    os.close(verdict_write)
    try:
        return _follow(launcher, verdict_read, job, limits, begin)
    finally:
        launcher.terminate()  # at once what Ctrl-C asks for: the launcher kills what it started
        try:
            launcher.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            launcher.kill()  # what it started dies with it
            launcher.wait()
        os.close(verdict_read)
        for stream in (launcher.stdin, launcher.stdout):
            assert stream is not None
            stream.close()  # nothing is buffered: the job is written past the object


_STARTER: Final = (
    "import os, sys, runpy; told = int(sys.argv[1]); os.dup2(told, 3); told == 3 or os.close(told); "
    "runpy.run_path(sys.argv[2], run_name='__main__')"
)


def _follow(
    launcher: subprocess.Popen[bytes], verdict_read: int, job: bytes, limits: Limits, begin: float
) -> tuple[dict[str, object], bytes, bool]:
    """Hand over the job while output and verdict come in: whoever does not read it cannot hold this up."""
    assert launcher.stdin is not None
    assert launcher.stdout is not None
    output, verdict, handed = bytearray(), bytearray(), 0
    deadline = begin + limits.seconds + _GRACE_S
    with selectors.DefaultSelector() as selector:
        reading = {launcher.stdout.fileno(): output, verdict_read: verdict}
        for end in reading:
            selector.register(end, selectors.EVENT_READ)
        os.set_blocking(launcher.stdin.fileno(), False)
        selector.register(launcher.stdin, selectors.EVENT_WRITE)
        while reading and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if key.fileobj is launcher.stdin:
                    try:
                        handed += os.write(key.fd, memoryview(job)[handed : handed + _PIECE_BYTES])
                    except BrokenPipeError:  # it has ended: its verdict, or that there is none, says why
                        handed = len(job)
                    if handed == len(job):
                        selector.unregister(launcher.stdin)
                        launcher.stdin.close()
                    continue
                data = os.read(key.fd, _PIECE_BYTES)
                if not data:
                    selector.unregister(key.fd)
                    del reading[key.fd]
                    continue
                reading[key.fd].extend(data)
                if len(output) > limits.output_bytes:
                    return {}, bytes(output[: limits.output_bytes]), True
    lines = bytes(verdict).splitlines()
    if not lines and reading:
        return {"failed": "timeout"}, bytes(output), False
    return (json.loads(lines[0]) if lines else {}), bytes(output), False
