"""Who does the work of an ingestion: this process, worker processes, or a Ray cluster; the results are the same.

Work is a pure function of its job and stands at the top of a module, so that another process can find it. An engine
does many jobs, as many at a time as it has workers, and gives each result with the number of its job as soon as it
is there. How far the work is comes by the way, as tallies.
"""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Final, Protocol, Self, TypeVar

from bytelm.data.workers import NOTHING, Tally, Tell, WorkerPool, added
from bytelm.errors import BytelmError, ConfigError

_Job = TypeVar("_Job", bound="Job")
_Result = TypeVar("_Result")

_WORTH_BYTES: Final = 32 << 20
"""Bytes of jobs below which worker processes would take longer to start than they save."""


class Job(Protocol):
    """What an engine has to know of a job."""

    @property
    def weight_bytes(self) -> int:
        """About how much there is to read."""
        ...


Work = Callable[[_Job, Tell], _Result]


class Engine(ABC):
    """Does jobs; a context that ends whatever it has started. It can be used for several runs."""

    is_here: bool
    """The work is done in this process, which sees what only this process sees."""
    workers: int
    """Jobs that it does at a time."""

    @abstractmethod
    def run(self, work: Work[_Job, _Result], jobs: Iterable[_Job], tell: Tell) -> Generator[tuple[int, _Result]]:
        """Do all jobs.

        Args:
            work: A function at the top of a module; it may call its second argument with what it has done.
            jobs: Taken as workers become free.
            tell: Called in this process with every tally.

        Yields:
            The number of a job, from 0, and its result; in the order in which they are finished.

        Raises:
            BytelmError: What the work raised, or a worker was killed. The other jobs are given up.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End whatever was started; the engine can be used again."""
        return


class InThisProcess(Engine):
    """One job after another, here: what the other engines must equal."""

    is_here = True
    workers = 1

    def run(self, work: Work[_Job, _Result], jobs: Iterable[_Job], tell: Tell) -> Generator[tuple[int, _Result]]:
        """See ``Engine``."""
        for number, job in enumerate(jobs):
            yield number, work(job, tell)


class Processes(Engine):
    """Worker processes of this machine.

    Args:
        workers: How many; None for one on each core that this process may use, and for none at all while the jobs
            are too small to be worth it. A number starts them when the context is entered.
        modules: What they load while they start, so that the first job finds it there.
    """

    is_here = False

    def __init__(self, workers: int | None = None, modules: Sequence[str] = ()) -> None:
        if workers is not None and workers < 1:
            raise ConfigError(f"workers = {workers}: at least 1 is needed; leave it out for one on each core")
        self._always = workers is not None
        self.workers = workers or available_cores()
        self._modules = modules
        self._pool: WorkerPool | None = None

    def __enter__(self) -> Self:
        if self._always and self.workers > 1:
            self._pool = WorkerPool(self.workers, self._modules)
            self._pool.start()
        return self

    def run(self, work: Work[_Job, _Result], jobs: Iterable[_Job], tell: Tell) -> Generator[tuple[int, _Result]]:
        """See ``Engine``."""
        first, rest = self._first_jobs(iter(jobs))
        if first is None:
            return InThisProcess().run(work, rest, tell)
        return self._run_elsewhere(work, chain(first, rest), tell)

    def close(self) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _run_elsewhere(
        self, work: Work[_Job, _Result], jobs: Iterable[_Job], tell: Tell
    ) -> Generator[tuple[int, _Result]]:
        if self._pool is None:
            self._pool = WorkerPool(self.workers, self._modules)
        return self._pool.run(work, jobs, tell)

    def _first_jobs(self, jobs: Iterator[_Job]) -> tuple[list[_Job] | None, Iterator[_Job]]:
        """The jobs that were looked at, or None if this process can do them all; and the others."""
        if self._always or self._pool is not None:
            return (None, jobs) if self.workers == 1 else ([], jobs)
        first: list[_Job] = []
        weight_bytes = 0
        for job in jobs:
            first.append(job)
            weight_bytes += job.weight_bytes
            if weight_bytes >= _WORTH_BYTES and len(first) > 1 and self.workers > 1:
                return first, jobs
        return None, iter(first)


class RayCluster(Engine):
    """A Ray cluster. Every machine of it needs bytelm, the sources and the corpus at the addresses that are given.

    Args:
        address: Of its head, as ``ray.init`` takes it; None for a cluster of this machine, which ends with the engine.
        workers: Jobs at a time; None for as many as the cluster has cores.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """

    is_here = False

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError("the engine 'ray' needs a package: pip install 'bytelm[ray]'") from error
        self._ray: Any = ray
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            cores = (workers or available_cores()) if address is None else None
            try:
                ray.init(
                    address=address or "local",
                    num_cpus=cores,
                    include_dashboard=False if address is None else None,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            except (ConnectionError, ValueError) as error:
                said = " ".join(str(error).split())
                raise ConfigError(f"no Ray cluster answers at {address!r}: {said}; check --address") from error
        self.workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def run(self, work: Work[_Job, _Result], jobs: Iterable[_Job], tell: Tell) -> Generator[tuple[int, _Result]]:
        """See ``Engine``; tallies come with the results."""
        task = self._ray.remote(max_retries=2)(_ray_task)
        numbers: dict[Any, int] = {}
        try:
            for number, job in enumerate(jobs):
                while len(numbers) >= 2 * self.workers:
                    yield self._next_result(numbers, tell)
                numbers[task.remote(work, job)] = number
            while numbers:
                yield self._next_result(numbers, tell)
        finally:
            for left in numbers:
                self._ray.cancel(left, force=True)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._is_ours:
            self._ray.shutdown()

    def _next_result(self, numbers: dict[Any, int], tell: Tell) -> tuple[int, Any]:
        (done,), _ = self._ray.wait(list(numbers), num_returns=1)
        number = numbers.pop(done)
        try:
            tally, result = self._ray.get(done)
        except self._ray.exceptions.RayTaskError:
            raise  # ours: the traceback of the task is in it
        except self._ray.exceptions.RayError as error:
            said = str(error).strip().partition("\n")[0]
            raise BytelmError(f"the Ray cluster lost a task: {said}; --resume goes on with what is done") from error
        if isinstance(result, BytelmError):
            raise result
        tell(tally)
        return number, result


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _ray_task(work: Callable[[Any, Tell], Any], job: Any) -> tuple[Tally, Any]:
    done = NOTHING

    def tell(tally: Tally) -> None:
        nonlocal done
        done = added(done, tally)

    try:
        result = work(job, tell)
    except BytelmError as error:
        result = error
    return done, result
