"""The processes that train one model together, and how they agree.

``torchrun`` starts the same program many times; each process has a rank. Rank 0 alone touches the run's folder and
speaks to people. What is decided (to stop, to skip a step, to go back) is decided from numbers that all ranks have,
so all do the same after the same step. These messages are small and stay in main memory; gradients are exchanged
elsewhere.
"""

import contextlib
import gc
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bytelm.config import TrainConfig
from bytelm.errors import BytelmError, ConfigError, TrainingError

_Value = TypeVar("_Value")
_SET_BY_TORCHRUN: Final = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_LOST: Final = re.compile(r"onnection (was )?(closed|reset|refused)|gloo|NCCL|Broken pipe|Socket", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes of a training, as one of them sees them.

    All of them must call each method in the same order; a process that is alone is never waited for.

    Attributes:
        rank: Number of this process, 0 … count - 1.
        count: How many there are.
        local_rank: Its number on this machine.
        on_this_machine: How many there are here.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    on_this_machine: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one writes and speaks."""
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sum over all ranks of each value, in float64, the same on all."""
        if self.count == 1:
            return [*values]
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def any(self, wish: bool) -> bool:
        """Whether one of them wishes it."""
        return (self.count > 1 and self.sums([wish])[0] > 0) or wish

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, in its place and on its device."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def first(self, value: _Value) -> _Value:
        """What rank 0 has."""
        if self.count == 1:
            return value
        told: list[Any] = [value]
        dist.broadcast_object_list(told)
        return told[0]

    def all(self, value: _Value) -> list[_Value]:
        """What each of them has, by rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        """Inside, where no rank waits for another, the error of one becomes the error of all.

        Raises:
            BytelmError: That of the lowest rank that has one. It says so itself; on the others ``told`` is set.
        """
        own: BytelmError | None = None
        try:
            yield
        except BytelmError as error:
            own = error
        errors = [(rank, error) for rank, error in enumerate(self.all(own)) if error is not None]
        if errors:
            rank, error = errors[0]
            error = error if own is None else own
            error.told = rank != self.rank
            raise error


ALONE: Final = Ranks()
"""One process, as it is without ``torchrun``."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one rank does of each step.

    Attributes:
        batch_windows: Windows of one of its micro-batches.
        micro_batches: How many it takes one after another.
    """

    batch_windows: int
    micro_batches: int

    @classmethod
    def of_step(cls, train: TrainConfig, ranks: int) -> "Share":
        """An equal share of a step, which has as many windows whatever the ranks, in as few micro-batches as fit.

        Args:
            train: A step has ``batch_windows * accumulation`` windows; a micro-batch at most ``batch_windows``.
            ranks: How many share it.

        Raises:
            ConfigError: The windows cannot be shared out equally.

        Example:
            >>> Share.of_step(TrainConfig(batch_windows=8, accumulation=3), ranks=2)
            Share(batch_windows=6, micro_batches=2)
        """
        windows = train.batch_windows * train.accumulation
        if windows % ranks:
            raise ConfigError(
                f"{windows} windows of a step (train.batch_windows = {train.batch_windows} times train.accumulation = "
                f"{train.accumulation}) cannot be shared out equally to {ranks} processes; choose a multiple of {ranks}"
            )
        own = windows // ranks
        most = min(own, train.batch_windows)
        batch_windows = next(count for count in range(most, 0, -1) if own % count == 0)
        return cls(batch_windows=batch_windows, micro_batches=own // batch_windows)


@contextlib.contextmanager
def joined(environment: Mapping[str, str] = os.environ) -> Iterator[Ranks]:
    """Meet the other processes that ``torchrun`` has started, if it has.

    Args:
        environment: What ``torchrun`` has set; without ``WORLD_SIZE``, or with 1, this process is alone.

    Yields:
        The ranks, which can agree as long as the block runs.

    Raises:
        ConfigError: Only a part of the variables is set.
    """
    count = int(environment.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    missing = [name for name in _SET_BY_TORCHRUN if name not in environment]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE = {count} asks for {count} processes, but {', '.join(missing)} is not set; start them with "
            f"torchrun --nproc-per-node {count} -m bytelm.cli train …, or unset WORLD_SIZE"
        )
    # Messages about tensors in main memory by gloo, gradients on GPUs by NCCL.
    both = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if both else "gloo")
    try:
        yield Ranks(
            rank=dist.get_rank(),
            count=count,
            local_rank=int(environment["LOCAL_RANK"]),
            on_this_machine=int(environment.get("LOCAL_WORLD_SIZE", count)),
        )
    except BytelmError as error:
        if error.told:  # torchrun ends all processes when one has ended: let the one that tells be the first
            with contextlib.suppress(RuntimeError):
                dist.all_reduce(torch.zeros(1))
        raise
    # Not after an error: whoever waits for this process learns of its end from the connection.
    gc.collect()  # a shared model that nobody uses any more would keep the group's threads beyond the interpreter's end
    dist.destroy_process_group()


@contextlib.contextmanager
def lost_ranks_named(ranks: Ranks) -> Iterator[None]:
    """Turn the end of another process, for which one inside the block waits, into one line.

    Raises:
        TrainingError: Another process has ended. Only the lowest rank should say so, and it does not know who it is:
            rank 0 says it, and the one that has ended has its own line.
    """
    try:
        yield
    except RuntimeError as error:
        if ranks.count == 1 or not _LOST.search(str(error)):
            raise
        lost = TrainingError(
            f"another of the {ranks.count} processes of this training has ended; its own line says why. What was "
            "saved is whole: start them all again with --resume auto"
        )
        lost.told = not ranks.is_first
        raise lost from error
