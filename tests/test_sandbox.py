"""What a hostile program tries, in the real sandbox: it is contained, passes nothing falsely and leaves nothing."""

import collections
import decimal
import fractions
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm import sandbox
from bytelm.errors import ConfigError
from bytelm.sandbox import Limits, Outcome, run_tests
from bytelm.sandbox_inside import Remote, decode, encode

ROOT = Path(__file__).resolve().parent.parent


def isolated() -> str:
    try:
        sandbox.require()
    except ConfigError as error:
        return str(error)
    return ""


REFUSED = isolated()
needs_isolation = pytest.mark.skipif(bool(REFUSED), reason=REFUSED or "isolated")


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """After each test no process runs that was started for it, and no temporary folder is left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    assert not list(tmp_path.glob("bytelm-sandbox-*"))
    left = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(tmp_path) in words and b"bytelm-sandbox-" in words:
                left.append(entry.name)
    assert not left


def judged(program: str, test: str = "assert one() == 1", **limits: float) -> Outcome:
    names = [name for name in ("one", "facts", "same") if f"{name}(" in test]
    return run_tests(program, test, names, limits=Limits(**{"seconds": 60.0, **limits}))  # pyright: ignore[reportArgumentType]


ONE = "def one():\n    return 1\n"


@needs_isolation
def test_right_programs_pass_and_wrong_ones_fail_with_the_reason() -> None:
    assert judged(ONE).passed
    assert judged(f"print('a word')\n{ONE}").output == b"a word\n"
    wrong = judged("def one():\n    return 2\n", "assert one() == 1, 'two is not one'")
    assert (wrong.passed, wrong.reason) == (False, "AssertionError: two is not one")
    assert judged("def one():\n    return 1 / 0\n").reason.startswith("ZeroDivisionError")
    assert judged("def two():\n    return 1\n").reason.startswith("KeyError")
    assert judged("def one(:\n").reason.startswith("SyntaxError")
    assert judged("raise ValueError('at once')").reason == "ValueError: at once"


@needs_isolation
def test_tests_see_values_helpers_and_errors() -> None:
    program = (
        "def one(*a, **k):\n    if not a:\n        raise KeyError('none')\n    return (a, k, iter([1.5]), {1: b'x'})\n"
    )
    test = (
        "a, k, i, d = one([1, {2}], x=None)\n"
        "assert (a, k, list(i), d) == (([1, helper(1)],), {'x': None}, [1.5], {1: b'x'})\n"
        "try:\n    one()\nexcept KeyError as error:\n    assert 'none' in str(error)\nelse:\n    assert False\n"
    )
    outcome = run_tests(program, test, ["one"], setup="def helper(n):\n    return {n + 1}\n")
    assert outcome.passed, outcome.reason


@needs_isolation
def test_objects_of_the_program_go_back_to_it_and_are_equal_to_nothing() -> None:
    program = "class Pair:\n    def __init__(self, a):\n        self.a = a\ndef one(pairs):\n    return pairs[0].a\n"
    assert run_tests(program, "assert one([Pair(7)]) == 7", ["one", "Pair"]).passed
    assert not run_tests(program, "assert Pair(7)", ["Pair"]).passed


@needs_isolation
@pytest.mark.parametrize(
    "program",
    [
        "class Same:\n    def __eq__(self, other):\n        return True\n    __hash__ = None\ndef one():\n    return Same()",
        "class Same(int):\n    def __eq__(self, other):\n        return True\ndef one():\n    return Same(5)",
        "class Same(list):\n    def __eq__(self, other):\n        return True\ndef one():\n    return [Same()]",
    ],
)
def test_an_object_that_says_it_equals_everything_passes_nothing(program: str) -> None:
    for test in (
        "assert one() == 1",
        "assert one() == [1]",
        "assert not one() != 1",
        "assert one()[0] == 1",
        "assert one() in [1]",
    ):
        assert not judged(program, test).passed


@needs_isolation
@pytest.mark.parametrize(
    "program",
    [
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "raise SystemExit(0)",
        "def one():\n    import os\n    os._exit(0)",
        "def one():\n    raise SystemExit(0)",
        "def one():\n    raise KeyboardInterrupt",
        "def one():\n    import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)\n    os.abort()",
        "import ctypes\nctypes.string_at(0)",
    ],
)
def test_ending_early_passes_nothing(program: str) -> None:
    assert not judged(program).passed


@needs_isolation
@pytest.mark.parametrize(
    "program",
    [
        # the verdict, written wherever it could be read
        "import os\nfor n in range(256):\n    try:\n        os.write(n, b'{\"passed\": true}\\n')\n    except OSError:\n        pass\nos._exit(0)",
        "print('{\"passed\": true}')\nimport os\nos._exit(0)",
        # the checker's own names
        "import builtins\nbuiltins.AssertionError = Exception\nbuiltins.exec = lambda *a: None\ndef one():\n    return 2",
        "import sys\nfor m in list(sys.modules.values()):\n    for n in ('check', 'encode', 'decode', '_tell', 'run_program'):\n"
        "        if hasattr(m, n):\n            setattr(m, n, lambda *a: {'passed': True})\ndef one():\n    return 2",
        "import sys\nf = sys._getframe()\nwhile f:\n    for v in list(f.f_locals.values()):\n        if hasattr(v, 'send'):\n"
        "            v.send({'passed': True})\n    f = f.f_back\ndef one():\n    return 2",
        "def one():\n    return {'t': 'int', 'v': 1}",
        "import atexit, os\natexit.register(lambda: os._exit(0))\ndef one():\n    return 2",
        "def one():\n    raise AssertionError",
        "import os\ndef one():\n    os.fork()\n    return 2",
    ],
)
def test_patching_the_checker_passes_nothing(program: str) -> None:
    assert not judged(program).passed


@needs_isolation
def test_the_tests_cannot_be_read_from_the_program() -> None:
    program = """
import gc, sys
def facts():
    found = []
    frame = sys._getframe()
    while frame:
        found += [repr(value) for value in frame.f_locals.values() if isinstance(value, (str, dict, list))]
        frame = frame.f_back
    found += [repr(thing) for thing in gc.get_objects() if isinstance(thing, dict) and len(thing) < 50 and 'tests' in thing]
    return sum('MARK' + 'ED' in text for text in found)
"""
    assert judged(program, "assert facts() == 0, 'MARKED'").passed


@needs_isolation
def test_the_tests_were_never_in_the_memory_of_the_program() -> None:
    """It reads all that the C library's heap and Python's arenas hold, and finds what it has put there itself.

    The words that it looks for are in its own source, too, so a few copies are no find.
    """
    program = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.sbrk.restype = ctypes.c_void_p
class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
SIZE = 1 << 16
def copies(mark):
    count, into = 0, ctypes.create_string_buffer(SIZE)
    here = Piece(ctypes.addressof(into), SIZE)
    for near in (id(object()), id(mark), libc.sbrk(0), ctypes.addressof(ctypes.create_string_buffer(1 << 20))):
        for base in range(max(0, (near - (32 << 20)) & -SIZE), near + (32 << 20), SIZE):
            there = Piece(base, SIZE)
            if libc.process_vm_readv(os.getpid(), ctypes.byref(here), 1, ctypes.byref(there), 1, 0) > 0:
                if base <= here.base < base + SIZE or here.base <= base < here.base + SIZE:
                    continue
                count += into.raw.count(mark)
    return count
own = b"PLANTED" * len(os.urandom(99))
def one():
    return copies(b"PLANTED") > 90, copies(b"MARKED")
"""
    tests = (
        "found = one()\nassert found[0], 'the search finds nothing'\nassert found[1] < 45, found  # " + "MARKED" * 99
    )
    outcome = run_tests(program, tests, ["one"], setup="# " + "MARKED" * 99, limits=Limits(seconds=60.0))
    assert outcome.passed, outcome.reason


@needs_isolation
@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM", "SIGABRT", "SIGSEGV"])
def test_a_program_that_is_killed_by_its_own_signal_is_dead(number: str) -> None:
    program = f"def one():\n    import os, signal\n    os.kill(os.getpid(), signal.{number})\n    return 1\n"
    assert judged(program).reason == "ConnectionError: the program ended while it was tested"
    group = f"def one():\n    import os, signal\n    os.killpg(0, signal.{number})\n    return 1\n"
    assert not judged(group).passed


@needs_isolation
def test_the_time_limit_holds_for_a_job_that_nobody_reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sandbox, "_GRACE_S", 0.5)
    asleep = tmp_path / "inside.py"
    asleep.write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(sandbox, "_INSIDE", asleep)
    assert judged(ONE, "assert one() == 1\n#" + "x" * (1 << 20), seconds=0.5).reason == "timeout"


@needs_isolation
def test_tests_longer_than_a_pipe_holds_are_handed_over_whole() -> None:
    assert judged(ONE, f"text = '{'x' * (1 << 20)}'\nassert len(text) == {1 << 20}\nassert one() == 1").passed
    assert not judged("import os\nos._exit(0)", f"text = '{'x' * (1 << 20)}'\nassert one() == 1").passed


@needs_isolation
def test_an_infinite_loop_ends_at_the_time_limit() -> None:
    assert judged("while True:\n    pass", seconds=1.0).reason == "timeout"
    assert judged("def one():\n    while True:\n        pass", seconds=1.0).reason == "timeout"
    stubborn = "import signal\nfor n in range(1, 32):\n    try:\n        signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError):\n        pass\nwhile True:\n    pass"
    assert judged(stubborn, seconds=1.0).reason == "timeout"


@needs_isolation
def test_processor_time_is_limited_too() -> None:
    outcome = judged("while True:\n    pass", processor_seconds=1)
    assert not outcome.passed
    assert outcome.reason != "timeout"


@needs_isolation
def test_a_fork_bomb_is_small_and_ends() -> None:
    assert (
        judged(
            "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass", seconds=2.0
        ).reason
        == "timeout"
    )
    count = """
import os, time
def facts():
    made = 0
    try:
        for _ in range(100):
            if os.fork() == 0:
                time.sleep(30)
                os._exit(0)
            made += 1
    except OSError:
        pass
    return made
"""
    outcome = judged(count, "assert 0 < facts() < 8")
    assert outcome.passed, outcome.reason


@needs_isolation
def test_a_background_process_does_not_outlive_its_program() -> None:
    program = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            time.sleep(0.1)
    os._exit(0)
def one():
    return 1
"""
    assert judged(program).passed  # and ``nothing_is_left``


@needs_isolation
def test_a_memory_bomb_is_refused_its_memory() -> None:
    assert judged("x = bytearray(2 << 30)").reason.startswith("MemoryError")
    grow = "def one():\n    x = []\n    while True:\n        x.append(bytearray(1 << 20))\n"
    assert judged(grow).reason.startswith("MemoryError")


@needs_isolation
def test_endless_output_is_cut() -> None:
    outcome = judged("while True:\n    print('x' * 1000)", output_bytes=10_000)
    assert (outcome.passed, outcome.reason) == (False, "more output than is allowed")
    assert len(outcome.output) == 10_000
    assert not judged("def one():\n    return 'x' * (20 << 20)", "assert one()").passed


@needs_isolation
def test_nothing_can_be_written_outside_and_nothing_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("as it was")
    program = f"""
import os, sys
def facts():
    written = []
    for place in ({str(tmp_path / "mine")!r}, {str(tmp_path / "new")!r}, "/new", "/etc/new", "/dev/new", os.__file__, "/usr/lib/new"):
        try:
            with open(place, "a") as file:
                file.write("changed")
            written.append(place)
        except OSError:
            pass
    with open("/tmp/here", "w") as file:
        file.write("x" * 1000)
    return written, os.listdir("/"), os.listdir("/tmp")
"""
    outcome = judged(
        program,
        "written, top, own = facts()\nassert not written, written\nassert own == ['here']\nassert 'proc' not in top and 'home' not in top, top",
    )
    assert outcome.passed, outcome.reason
    assert (tmp_path / "mine").read_text() == "as it was"
    assert not (tmp_path / "new").exists()
    large = "def one():\n    open('/tmp/large', 'wb').write(bytes(100 << 20))\n    return 1"
    assert not judged(large).passed


@needs_isolation
def test_the_environment_and_other_processes_are_not_to_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYTELM_SECRET", "token")
    program = """
import os, glob
def facts():
    seen = dict(os.environ)
    for path in glob.glob("/proc/*/environ") + ["/proc/self/environ", "/proc/1/environ"]:
        try:
            seen[path] = open(path, "rb").read()
        except OSError:
            pass
    return sorted(set(seen) - {"LC_CTYPE"}), os.getpid(), os.getppid(), os.getuid() != 0
"""
    outcome = judged(program, "assert facts() == ([], 2, 1, True), facts()")
    assert outcome.passed, outcome.reason


@needs_isolation
def test_there_is_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0bytelm-{os.getpid()}")
        abstract.listen()
        program = f"""
import socket
def facts():
    reached = []
    for family, kind, address in (
        (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", {server.getsockname()[1]})),
        (socket.AF_INET, socket.SOCK_DGRAM, ("8.8.8.8", 53)),
        (socket.AF_UNIX, socket.SOCK_STREAM, {f"{chr(0)}bytelm-{os.getpid()}"!r}),
    ):
        try:
            with socket.socket(family, kind) as end:
                end.connect(address)
                reached.append(address)
        except OSError:
            pass
    return reached
"""
        outcome = judged(program, "assert facts() == [], facts()")
        assert outcome.passed, outcome.reason


@needs_isolation
def test_nobody_else_can_be_killed() -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    program = f"""
import os, signal
def one():
    for number in (os.getppid(), {os.getpid()}, {bystander.pid}, -1, *range(1, 200)):
        try:
            if number != os.getpid():
                os.kill(number, signal.SIGKILL)
        except OSError:
            pass
    return 1
"""
    assert judged(program).passed
    assert bystander.poll() is None
    bystander.communicate(b"\n")


@needs_isolation
def test_powers_do_not_come_back() -> None:
    program = """
import ctypes, os
def facts():
    libc = ctypes.CDLL(None)
    gained = []
    for name, arguments in (
        ("unshare", (0x10000000,)), ("unshare", (0x00020000,)), ("mount", (b"none", b"/tmp", b"tmpfs", 0, None)),
        ("setuid", (0,)), ("chroot", (b"/tmp",)), ("sethostname", (b"x", 1)), ("umount2", (b"/tmp", 2)),
    ):
        if getattr(libc, name)(*arguments) == 0:
            gained.append(name)
    return gained
"""
    outcome = judged(program, "gained = facts()\nassert gained == [], gained")
    assert outcome.passed, outcome.reason


@needs_isolation
def test_a_user_without_powers_is_isolated_as_well() -> None:
    if os.geteuid() != 0:
        pytest.skip("this is what all the other tests do here")
    code = "import os; os.setgid(65534); os.setuid(65534); import sys; sys.path[:0] = [{!r}]; from bytelm.sandbox import *; "
    code = (
        code.format(str(ROOT))
        + "import json; print(json.dumps([run_tests(p, 'assert one() == 1', ['one']).passed for p in {!r}]))"
    )
    programs = [ONE, "def one():\n    return 2", "import os\nos._exit(0)"]
    for python in (sys.executable, "/usr/bin/python3"):
        if Path(python).exists():
            words = [python, "-c", code.format(programs)]
            found = subprocess.run(words, capture_output=True, text=True, check=False, env={"TMPDIR": "/tmp"}, cwd="/")
            if found.returncode == 0:
                assert json.loads(found.stdout) == [True, False, False]
                return
    pytest.skip("no interpreter here can be started by another user")


def test_a_system_that_does_not_isolate_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConfigError, match=r"its system is darwin.*leave out --run-code"):
        run_tests(ONE, "assert one() == 1", ["one"])


@needs_isolation
def test_where_namespaces_are_forbidden_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inside = tmp_path / "inside.py"
    source = Path(sandbox.__file__).with_name("sandbox_inside.py").read_text()
    inside.write_text(
        source.replace(
            "    job = json.loads(_part(0))\n",
            "    job = json.loads(_part(0))\n    forbid()\n",
            1,
        ).replace(
            "def main():",
            "def forbid():\n    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))\n    os.setresuid(65534, 65534, 65534) if os.geteuid() == 0 else None\n\n\ndef main():",
            1,
        )
    )
    monkeypatch.setattr(sandbox, "_INSIDE", inside)
    with pytest.raises(ConfigError, match=r"cannot be isolated on this machine \(.+\)"):
        run_tests(ONE, "assert one() == 1", ["one"])


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.integers() | st.text(), inner),
    max_leaves=8,
)


@given(PLAIN)
@settings(deadline=None)
def test_plain_values_cross_as_they_are(value: object) -> None:
    there = decode(json.loads(json.dumps(encode(value, []))), Remote)
    assert there == value
    assert repr(there) == repr(value)


def test_what_libraries_make_crosses_too() -> None:
    for value in (
        {1, 2},
        frozenset("ab"),
        collections.Counter("aab"),
        collections.OrderedDict(a=1),
        collections.deque([1, 2]),
        decimal.Decimal("1.10"),
        fractions.Fraction(1, 3),
        range(1, 9, 2),
        bytearray(b"x"),
        float("inf"),
    ):
        there = decode(json.loads(json.dumps(encode(value, []))), Remote)
        assert (there, type(there)) == (value, type(value))
    assert [*decode(encode(map(str, [1, 2]), []), Remote)] == ["1", "2"]  # pyright: ignore[reportOptionalIterable]
    with pytest.raises(OverflowError):
        encode((number for number in iter(int, 1)), [])
