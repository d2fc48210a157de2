"""Saving beside the training: a snapshot is copied to main memory, a thread writes it, the next step goes on.

At most one checkpoint is being written. A disk that refuses does not stop anything here: the outcome says so, the
checkpoints before are whole, and the next one is tried again.
"""

import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from bytelm.checkpoint import Snapshot, save_checkpoint
from bytelm.errors import StorageError
from bytelm.split_tensors import whole

_PARTS: Final = ("model", "average", "optimizer", "random")
"""Of a snapshot, those that hold tensors, in the order in which they are put together."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the saving of a step ended.

    Attributes:
        step: Of the checkpoint.
        checkpoint: Its folder; None where the disk refused.
        refusal: What the disk refused; None where it took everything.
    """

    step: int
    checkpoint: Path | None
    refusal: StorageError | None


class Saver:
    """Writes the checkpoints of a run.

    Args:
        run: Folder of the run; it must exist.
        keep: Newest checkpoints that stay.
        background: Whether a thread writes. It takes as much main memory as a checkpoint holds, from the first one on.
        writes: Whether this process writes at all. Those that do not only take part where tensors are put together.
    """

    def __init__(self, run: Path, *, keep: int, background: bool, writes: bool = True) -> None:
        self._run = run
        self._keep = keep
        self._background = background
        self._writes = writes
        self._thread: threading.Thread | None = None
        self._outcomes: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
        self._copies: dict[str, Tensor] = {}

    def save(self, snapshot: Snapshot, *, best: bool = False) -> None:
        """Save a snapshot: begin to, or in the foreground do so. What is still being written is waited for first.

        Args:
            snapshot: Of the present step; its tensors may change as soon as this returns. Of those that are held in
                parts, all processes call this at the same time.
            best: Whether it is the best so far.
        """
        self._join()
        if not self._writes:
            for part in _PARTS:
                for tensor in getattr(snapshot, part).values():
                    whole(tensor)
            return
        collect = self._copied if self._background else _gathered
        snapshot = replace(snapshot, **{part: collect(part, getattr(snapshot, part)) for part in _PARTS})
        if not self._background:
            self._write(snapshot, best)
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies are complete
        # A daemon: a person who wants to leave at once is not kept waiting. What is half written counts for nothing.
        self._thread = threading.Thread(target=self._write, args=(snapshot, best), name="saver", daemon=True)
        self._thread.start()

    def outcomes(self, *, wait: bool = False) -> list[Outcome]:
        """What has ended since the last call.

        Args:
            wait: For what is still being written.

        Raises:
            Exception: An error of our own in the thread.
        """
        if wait:
            self._join()
        ended = []
        while not self._outcomes.empty():  # nobody else takes
            outcome = self._outcomes.get()
            if isinstance(outcome, BaseException):
                raise outcome
            ended.append(outcome)
        return ended

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, snapshot: Snapshot, best: bool) -> None:
        checkpoint, refusal = None, None
        try:
            checkpoint = save_checkpoint(self._run, snapshot, keep=self._keep, best=best)
        except StorageError as error:
            refusal = error
        except BaseException as error:
            if not self._background:
                raise
            self._outcomes.put(error)  # raised where it is seen
            return
        self._outcomes.put(Outcome(step=snapshot.step, checkpoint=checkpoint, refusal=refusal))

    def _copied(self, part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies in main memory, the same ones each time; nothing else is being written from them now."""
        copied = {}
        for name, part_or_whole in tensors.items():
            tensor = whole(part_or_whole.detach())
            place = f"{part} {name}"
            copy = self._copies.get(place)
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._copies[place] = copy
            copied[name] = copy.copy_(tensor, non_blocking=True)
        return copied


def _gathered(_: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as they are, and those that are held in parts put together in main memory."""
    return {
        name: whole(tensor.detach()).cpu() if isinstance(tensor, DTensor) else tensor
        for name, tensor in tensors.items()
    }
