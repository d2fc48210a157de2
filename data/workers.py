"""Worker processes: fresh Python programs that do jobs, one at a time, and end with the process that started them.

They are started as programs of their own, not forked and not through ``multiprocessing``: nothing of this process is
in them, no ``__main__`` is imported again, and they start in a tenth of a second. Jobs and results go through a
socket. Ctrl-C does not reach them; a pipe that only this process holds open tells them when it has gone, kill -9
included.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Final, NamedTuple, TypeVar

from bytelm.errors import BytelmError

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")

_PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from bytelm.data.workers import serve; serve(int(sys.argv[1]), sys.argv[3:])"
)
_TELL_EVERY_S: Final = 0.1


class Tally(NamedTuple):
    """What has been done since the last tally."""

    documents: int
    raw_bytes: int
    packed_bytes: int


Tell = Callable[[Tally], None]
NOTHING: Final = Tally(0, 0, 0)


def added(one: Tally, other: Tally) -> Tally:
    """Both together."""
    return Tally(one[0] + other[0], one[1] + other[1], one[2] + other[2])


class _Worker(NamedTuple):
    process: "subprocess.Popen[bytes]"
    connection: "Connection[Any, Any]"


class WorkerPool:
    """Processes that are started as they are needed and kept until the end.

    Args:
        workers: How many at most.
        modules: What each loads while it starts.
    """

    def __init__(self, workers: int, modules: Sequence[str] = ()) -> None:
        self._most = workers
        self._modules = modules
        self._workers: list[_Worker] = []

    def run(
        self, work: Callable[[_Job, Tell], _Result], jobs: Iterable[_Job], tell: Tell
    ) -> Generator[tuple[int, _Result]]:
        """Do all jobs; see ``Engine.run``."""
        numbered = enumerate(jobs)
        idle = list(self._workers)
        busy: dict[Any, tuple[int, _Worker]] = {}
        finished: list[tuple[int, _Result]] = []
        try:
            while True:
                while (idle or len(self._workers) < self._most) and (following := next(numbered, None)):
                    worker = idle.pop() if idle else self._start()
                    busy[worker.connection] = (following[0], worker)
                    self._send(worker, (work, following[1]))
                yield from finished  # only now: while the caller looks at a result, everybody works
                finished.clear()
                if not busy:
                    return
                for ready in wait(list(busy)):
                    number, worker = busy[ready]
                    done, tally, value = self._receive(worker)
                    tell(tally)
                    if isinstance(value, BytelmError):
                        raise value
                    if done:
                        finished.append((number, value))
                        idle.append(worker)
                        del busy[ready]
        finally:
            if busy:  # given up: what they are doing is wanted no more
                self.close()

    def start(self) -> None:
        """Start all processes, whether they are needed or not."""
        while len(self._workers) < self._most:
            self._start()

    def close(self) -> None:
        """End all processes at once."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.connection.close()
            worker.process.communicate()
        self._workers.clear()

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        # A blocked signal stays blocked in a new program: Ctrl-C, which the terminal sends to all, is ours alone.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), json.dumps(sys.path), *self._modules],
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env=environment,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()
        worker = _Worker(process, Connection(ours.detach()))
        self._workers.append(worker)
        return worker

    def _send(self, worker: _Worker, message: object) -> None:
        try:
            worker.connection.send(message)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._ended(worker) from error

    def _receive(self, worker: _Worker) -> Any:
        try:
            return worker.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._ended(worker) from error

    def _ended(self, worker: _Worker) -> Exception:
        code = worker.process.wait()
        if code < 0:
            return BytelmError(
                f"a worker process was killed ({signal.Signals(-code).name}), perhaps for want of memory; "
                "use fewer --workers, and --resume to go on with what is done"
            )
        return RuntimeError(f"a worker process ended with code {code}; its traceback is above")


def serve(descriptor: int, modules: Sequence[str]) -> None:
    """Do jobs that come through a socket until the other side closes it: the whole life of a worker process.

    Args:
        descriptor: The socket's.
        modules: What is loaded first.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for module in modules:
        importlib.import_module(module)
    with Connection(descriptor) as connection:
        while True:
            try:
                work, job = connection.recv()
            except EOFError:
                return
            teller = _Teller(connection)
            try:
                result = work(job, teller)
            except BytelmError as error:
                result = error
            connection.send((True, teller.untold, result))


class _Teller:
    """Sends tallies, added up, now and then."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection = connection
        self._told_s = 0.0
        self.untold = NOTHING

    def __call__(self, tally: Tally) -> None:
        self.untold = added(self.untold, tally)
        now_s = time.monotonic()
        if now_s - self._told_s >= _TELL_EVERY_S:
            self._connection.send((False, self.untold, None))
            self._told_s, self.untold = now_s, NOTHING


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)
