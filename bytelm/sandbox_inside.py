"""What runs inside the sandbox: started as a script of its own, with the standard library alone and no environment.

    launcher   makes the namespaces, waits, and kills all of them at the time limit
    checker    pid 1 of the first: builds the file system, then runs the tests, of which the program sees nothing
    keeper     pid 1 of a nested one: waits for the program and ends with it; unprivileged like the program
    program    its child: the generated code, which cannot see or signal the checker

Standard input holds the job and, behind it, the tests. The checker reads the tests when the program has been forked
off, so no byte of them was ever in the memory that the program has. The program is no pid 1, for the kernel drops the
signals that a pid 1 sends to itself: a program that kills itself would live on.

The tests call functions of the program through a socket. Arguments and answers cross it as plain data, so what comes
back is a value and no object that could decide by itself what it is equal to. Exit codes and output decide nothing.
``bytelm.sandbox`` tells what is passed and reads the verdict.
"""

import builtins
import collections
import ctypes
import decimal
import fractions
import json
import os
import re
import resource
import select
import signal
import socket
import struct
import sys
import time
import types

_VERDICT = 3  # the descriptor on which the verdict leaves
_NEW_MOUNTS, _NEW_UTS, _NEW_IPC, _NEW_USER, _NEW_PIDS, _NEW_NET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_PROGRAMS, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
_KEPT_FLAGS = ((2, 2), (4, 4), (8, 8), (1024, 1024), (2048, 2048), (4096, 1 << 21))
"""Flags of a mount, as statvfs tells them and as mount wants them: those that may not be taken away."""
_DETACH = 2
_PDEATHSIG, _SET_DUMPABLE, _NO_NEW_PRIVILEGES = 1, 4, 38
_MESSAGE_BYTES = 16 << 20
_FIRST_UID = 0x40000000
_ITERATORS = (
    *map(type, (iter([]), iter(()), iter(""), iter({}), iter(set()), iter(range(0)), (x for x in ()), reversed([]))),
    *(map, filter, zip, enumerate, type({}.keys()), type({}.values()), type({}.items())),
)
_MOST_ITEMS = 100_000

_libc = ctypes.CDLL(None, use_errno=True)


class RefusedError(Exception):
    """The system does not isolate."""


class Remote:
    """A value of the program that is no plain data: it can be handed back to it, and is equal to nothing."""

    def __init__(self, number):
        self.number = number

    def _refuse(self, *_):
        raise TypeError("the program answered with something that is no plain value")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __hash__ = _refuse


def encode(value, remotes):
    """A value as JSON that tells its exact type; what has no plain type is kept in ``remotes`` and named."""
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return {"t": "float", "v": repr(value)}
    if kind in (list, tuple, set, frozenset, collections.deque):
        return {"t": kind.__name__, "v": [encode(item, remotes) for item in value]}
    if kind in (dict, collections.OrderedDict, collections.Counter, collections.defaultdict):
        pairs = [[encode(key, remotes), encode(item, remotes)] for key, item in value.items()]
        return {"t": "dict" if kind is collections.defaultdict else kind.__name__, "v": pairs}
    if kind in (bytes, bytearray):
        return {"t": kind.__name__, "v": value.hex()}
    if kind is complex:
        return {"t": "complex", "v": [repr(value.real), repr(value.imag)]}
    if kind in (decimal.Decimal, fractions.Fraction):
        return {"t": kind.__name__, "v": str(value)}
    if kind is range:
        return {"t": "range", "v": [value.start, value.stop, value.step]}
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return {"t": "tuple", "v": [encode(item, remotes) for item in tuple(value)]}
    if kind in _ITERATORS:
        items = []
        for item in value:
            items.append(encode(item, remotes))
            if len(items) > _MOST_ITEMS:
                raise OverflowError("an iterator without an end")
        return {"t": "iterator", "v": items}
    if kind is re.Match:  # tests ask whether there is one
        return {"t": "match", "v": None}
    if isinstance(value, Remote):
        return {"t": "remote", "v": value.number}
    remotes.append(value)
    return {"t": "remote", "v": len(remotes) - 1}


def decode(tree, remote):
    """The value of ``encode``; ``remote`` makes one of a number."""
    if not isinstance(tree, dict):
        return tree
    kind, inner = tree["t"], tree["v"]
    if kind in ("list", "tuple", "set", "frozenset", "deque", "iterator"):
        items = [decode(item, remote) for item in inner]
        makers = {"deque": collections.deque, "iterator": iter}
        return (makers[kind] if kind in makers else getattr(builtins, kind))(items)
    if kind in ("dict", "OrderedDict", "Counter"):
        pairs = {decode(key, remote): decode(item, remote) for key, item in inner}
        return {"dict": dict, "OrderedDict": collections.OrderedDict, "Counter": collections.Counter}[kind](pairs)
    if kind in ("bytes", "bytearray"):
        return getattr(builtins, kind).fromhex(inner)
    makers = {
        "float": float,
        "complex": lambda parts: complex(*map(float, parts)),
        "Decimal": decimal.Decimal,
        "Fraction": fractions.Fraction,
        "range": lambda parts: range(*parts),
        "match": lambda _: re.match("", ""),
        "remote": remote,
    }
    return makers[kind](inner)


class Line:
    """Messages over a socket, each with its length before it."""

    def __init__(self, end):
        self._end = end

    def send(self, message):
        """Send a message."""
        content = json.dumps(message).encode()
        self._end.sendall(struct.pack("<I", len(content)) + content)

    def receive(self):
        """The next message; None where the other side has gone."""
        head = self._exactly(4)
        if head is None:
            return None
        (size,) = struct.unpack("<I", head)
        if size > _MESSAGE_BYTES:
            return None
        content = self._exactly(size)
        return None if content is None else json.loads(content)

    def _exactly(self, size):
        parts = bytearray()
        while len(parts) < size:
            part = self._end.recv(min(size - len(parts), 1 << 16))
            if not part:
                return None
            parts += part
        return bytes(parts)


def _call(name, *arguments):
    """Call a function of the C library that returns -1 for an error."""
    if getattr(_libc, name)(*arguments) < 0:
        error = ctypes.get_errno()
        raise RefusedError(f"{name}: {os.strerror(error)}")


def _mount(source, target, kind, flags, options=None):
    as_bytes = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    try:
        _call("mount", as_bytes[0], as_bytes[1], as_bytes[2], ctypes.c_ulong(flags), as_bytes[3])
    except RefusedError as error:
        raise RefusedError(f"{error} ({target})") from None


def separate():
    """Leave all namespaces that the system lets a process leave; in a namespace of users where we are not root."""
    flags = _NEW_MOUNTS | _NEW_UTS | _NEW_IPC | _NEW_PIDS | _NEW_NET
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        _call("unshare", flags)
        return
    _call("unshare", flags | _NEW_USER)
    for name, line in (("setgroups", "deny"), ("uid_map", f"65534 {user} 1"), ("gid_map", f"65534 {group} 1")):
        try:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)
        except OSError as error:
            raise RefusedError(f"{name}: {error.strerror}") from None


def build_root(root, shown):
    """A file system of a few read-only folders, a small writable /tmp, and nothing else.

    It lies in a folder of the root of the mounts: whose root is another one may not make namespaces of users, in which
    a program would have powers again.
    """
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    _mount("none", root, "tmpfs", _NO_SUID | _NO_DEVICES, "size=1m,mode=755")
    inner = f"{root}/inner"
    for path in shown:
        target = inner + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), target)
            continue
        os.makedirs(target, exist_ok=True)
        _bind(path, target)
    os.makedirs(f"{inner}/dev", exist_ok=True)
    for name in ("null", "zero", "urandom"):
        os.close(os.open(f"{inner}/dev/{name}", os.O_CREAT | os.O_WRONLY))
        _mount(f"/dev/{name}", f"{inner}/dev/{name}", None, _BIND)
    os.makedirs(f"{inner}/tmp", exist_ok=True)
    _mount("none", f"{inner}/tmp", "tmpfs", _NO_SUID | _NO_DEVICES | _NO_PROGRAMS, "size=16m,nr_inodes=1k,mode=777")
    os.chdir(root)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", _DETACH)
    os.chdir("/")
    _mount(None, "/", None, _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | _NO_DEVICES)
    os.chroot("/inner")
    os.chdir("/tmp")


def _bind(path, target):
    _mount(path, target, None, _BIND | _RECURSIVE)
    found = os.statvfs(target).f_flag
    kept = sum(flag for told, flag in _KEPT_FLAGS if found & told)
    _mount(None, target, None, _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | _NO_DEVICES | kept)


def give_up_powers(limits, uid):
    """Become nobody, for good, within the limits."""
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header = struct.pack("<Ii", 0x20080522, 0)
    _call("capset", header, bytes(24))
    _call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _call("prctl", _SET_DUMPABLE, 0, 0, 0, 0)
    _call("prctl", _PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def run_program(line, source):
    """Run the generated code, then answer calls until nobody asks any more."""
    namespace = types.ModuleType("__main__")
    sys.modules["__main__"] = namespace
    sys.argv = ["program"]
    sys.stdout = os.fdopen(1, "w", 1, closefd=False)  # by lines: nothing is flushed at the end, which may come any time
    remotes = []
    try:
        exec(compile(source, "program.py", "exec"), namespace.__dict__)
    except BaseException as error:  # noqa: BLE001  whatever generated code raises, it has failed
        line.send({"error": type(error).__name__, "text": str(error)[:500]})
        return
    line.send({"ready": True})
    while (request := line.receive()) is not None:
        try:
            function = namespace.__dict__[request["call"]]
            arguments = [decode(tree, remotes.__getitem__) for tree in request["arguments"]]
            named = {name: decode(tree, remotes.__getitem__) for name, tree in request["named"].items()}
            answer = {"value": encode(function(*arguments, **named), remotes)}
        except BaseException as error:  # noqa: BLE001  the tests are told
            answer = {"error": type(error).__name__, "text": str(error)[:500]}
        line.send(answer)


def check(line, tests):
    """Run the tests against the program; the verdict."""
    ready = line.receive()
    if ready is None:
        return {"failed": "the program ended before it could be tested"}
    if "error" in ready:
        return {"failed": f"{ready['error']}: {ready.get('text', '')}"}

    def proxy(name):
        def called(*arguments, **named):
            passed = [encode(value, []) for value in arguments]
            line.send({"call": name, "arguments": passed, "named": {k: encode(v, []) for k, v in named.items()}})
            answer = line.receive()
            if answer is None:
                raise ConnectionError("the program ended while it was tested")
            if "error" in answer:
                raise _exception_of(str(answer["error"]))(f"{answer['error']}: {answer.get('text', '')}")
            return decode(answer["value"], Remote)

        return called

    namespace: dict[str, object] = {"__name__": "__tests__"}
    try:
        exec(compile(tests["setup"], "setup.py", "exec"), namespace)
        for name in tests["functions"]:
            namespace[name] = proxy(name)
        exec(compile(tests["tests"], "tests.py", "exec"), namespace)
    except BaseException as error:  # noqa: BLE001  any way in which tests do not reach their end is a failure
        return {"failed": f"{type(error).__name__}: {error}"[:500]}
    return {"passed": True}


def _exception_of(name: str):
    """The built-in exception of a name, for tests that expect one; RuntimeError where there is none to be made."""
    known = getattr(builtins, name, None)
    if isinstance(known, type) and issubclass(known, Exception) and not issubclass(known, UnicodeError):
        return known
    return RuntimeError


def _part(end):
    """What stands first in a stream, with its length before it; not a byte more is read."""
    (size,) = struct.unpack("<I", _exactly(end, 4))
    return _exactly(end, size)


def _exactly(end, size):
    content = bytearray()
    while len(content) < size:
        part = os.read(end, size - len(content))
        if not part:
            raise EOFError("the job ends early")
        content += part
    return bytes(content)


def _rest(end):
    content = bytearray()
    while part := os.read(end, 1 << 16):
        content += part
    return bytes(content)


def _tell(verdict):
    os.write(_VERDICT, json.dumps(verdict).encode() + b"\n")


def _keep(job, uid):
    """Pid 1 of the program's namespace: start the program, and end with it; never returns."""
    limits = dict(job["limits"])
    limits["NPROC"] += 1  # this process
    give_up_powers(limits, uid)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a handler no signal of the program's reaches its pid 1
    program = os.fork()
    if program == 0:
        os.setsid()
        _call("prctl", _PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run_program(Line(socket.socket(fileno=_VERDICT)), job["program"])
        os._exit(0)
    os.closerange(0, 256)  # the checker is to see that the program's end of the line has gone
    while os.wait()[0] != program:
        pass
    os._exit(0)  # what the program has started ends with its pid 1


def _inside(job):
    """Pid 1 of the new namespace; never returns."""
    try:
        build_root(job["root"], job["shown"])
        ours, theirs = socket.socketpair()
        _call("unshare", _NEW_PIDS)
        uid = _FIRST_UID + int.from_bytes(os.urandom(3), "little") * 2
        nothing = os.open("/dev/null", os.O_RDWR)
        if os.fork() == 0:
            os.dup2(nothing, 0)  # over the tests that nobody has read yet
            os.dup2(1, 2)
            os.dup2(theirs.detach(), _VERDICT)  # over the verdict's: the program has no way to it
            os.closerange(_VERDICT + 1, 256)
            os.setsid()
            _keep(job, uid)
        theirs.close()
        tests = json.loads(_rest(0))
        for standard in (0, 1, 2):
            os.dup2(nothing, standard)
        os.setsid()
        give_up_powers(job["limits"], uid + 1)
        verdict = check(Line(ours), tests)
    except RefusedError as error:
        verdict = {"refused": str(error)}
    except Exception as error:  # noqa: BLE001  a fault of ours is told as what it is, and passes nothing
        verdict = {"failed": f"the sandbox failed: {type(error).__name__}: {error}"}
    _tell(verdict)
    os._exit(0)


def main():
    """Read the job, launch, wait, and leave nothing behind."""
    job = json.loads(_part(0))
    try:
        separate()
        child = os.fork()
    except (RefusedError, OSError) as error:
        _tell({"refused": str(error)})
        return
    if child == 0:
        _inside(job)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.kill(child, signal.SIGKILL))
    handle = os.pidfd_open(child)
    ended, _, _ = select.select([handle], [], [], max(0.0, job["deadline"] - time.monotonic()))
    if not ended:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)  # returns when every process of the namespaces has gone
    if not ended:
        _tell({"failed": "timeout"})


if __name__ == "__main__":
    main()
