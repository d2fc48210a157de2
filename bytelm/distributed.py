"""One model on many ranks: each with a copy (``ddp``), or each with a part of every tensor (``fsdp``).

Both sum the gradients of all ranks, once in a step, in the backward pass of its last micro-batch. The loss of each
rank is divided by the targets of the whole step (``multi_byte_loss``'s ``counts_K``), so the sum is the gradient of
the whole step, as one process would find it. Both of torch's wrappers take a mean, so the loss is multiplied by the
number of ranks before.

In ``fsdp`` a unit is a layer of the trunk; embedding, norm and all heads are the unit around them, whole as long as a
step runs: the heads are one autograd function with all their gradients at once.
"""

import contextlib
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from bytelm.config import RunConfig
from bytelm.errors import ConfigError
from bytelm.loss import TrainOutput
from bytelm.model import ByteLM
from bytelm.ranks import Ranks

ParallelUsed = Literal["none", "ddp", "fsdp"]
_Result = TypeVar("_Result")


def choose_parallel(config: RunConfig, ranks: Ranks) -> ParallelUsed:
    """What ``train.parallel`` means for so many processes.

    Args:
        config: Its ``train.parallel`` decides; ``auto`` is ``ddp``. A process that is alone has nothing to share.
        ranks: How many there are.

    Raises:
        ConfigError: Parts of matrices are to be treated as whole ones.
    """
    if ranks.count == 1:
        return "none"
    wanted = config.train.parallel
    if wanted == "fsdp" and config.train.optimizer == "muon":
        raise ConfigError(
            "train.optimizer = muon works on whole matrices, and train.parallel = fsdp leaves each process a part of "
            "them; set train.parallel = ddp, or train.optimizer = adamw"
        )
    if wanted == "fsdp" and config.train.frozen == "language_model" and config.heads.family == "linear":
        raise ConfigError(
            "train.frozen = language_model keeps some rows of the matrix of all linear heads, and with "
            "train.parallel = fsdp each process has other rows of it; set train.parallel = ddp, or train.frozen = trunk"
        )
    return "ddp" if wanted == "auto" else wanted


def own_device(device: torch.device, ranks: Ranks) -> torch.device:
    """The device of this process: on CUDA each has a GPU of its own.

    Args:
        device: What ``choose_device`` gave.
        ranks: How many there are.

    Raises:
        ConfigError: There are more processes on this machine than GPUs, or all were given one and the same.
    """
    if ranks.count == 1 or device.type != "cuda":
        return device
    if device.index is not None:
        raise ConfigError(f"train.device = {device} gives {ranks.count} processes one GPU; set train.device = cuda")
    if ranks.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {ranks.local_rank + 1} of this machine finds no GPU of its own: there are "
            f"{torch.cuda.device_count()}; lower --nproc-per-node"
        )
    device = torch.device("cuda", ranks.local_rank)
    torch.cuda.set_device(device)
    return device


class SharedModel:
    """A model that all ranks train together.

    Args:
        model: In main memory. It moves to the device; in ``fsdp`` layer by layer, and its tensors become parts.
        ranks: All of them must do the same with it.
        how: ``none`` for a process that is alone.
        device: Of this process.
    """

    def __init__(self, model: ByteLM, ranks: Ranks, how: ParallelUsed, device: torch.device) -> None:
        self.model = model
        self.how: ParallelUsed = how
        self._ranks = ranks
        self._sharded: Any = None
        self._copied: DistributedDataParallel | None = None
        if how == "fsdp":
            mesh = init_device_mesh(device.type, (ranks.count,))
            for layer in model.layers:
                fully_shard(layer, mesh=mesh)
            self._sharded = fully_shard(_Whole(model), mesh=mesh)
            assert isinstance(self._sharded, FSDPModule)
            return
        model.to(device)
        if how == "ddp":
            curriculum = model.heads_config.curriculum != "none" and model.heads.own_layer(0) is not None
            self._copied = DistributedDataParallel(
                _Whole(model),
                gradient_as_bucket_view=True,
                find_unused_parameters=curriculum,  # of heads that take no part
            )

    def add_gradients(self, compute: Callable[[ByteLM], TrainOutput], *, last: bool) -> TrainOutput:
        """Add the gradients of a micro-batch to those of its step.

        Args:
            compute: The forward pass; its loss is this rank's part of the step's.
            last: Whether it is the step's last micro-batch: then all gradients are summed over the ranks.

        Returns:
            What ``compute`` returned.
        """
        if self._sharded is not None:
            self._sharded.set_requires_gradient_sync(last)
        waiting = contextlib.nullcontext() if last or self._copied is None else self._copied.no_sync()
        with waiting:
            output = self._call(compute)
            (output.loss if self._ranks.count == 1 else output.loss * self._ranks.count).backward()
        return output

    def evaluate(self, compute: Callable[[ByteLM], _Result]) -> _Result:
        """Compute something without gradients; all ranks compute the same, with as many calls of the model."""
        if self._sharded is None:
            return compute(self.model)
        try:
            return self._sharded(compute)
        finally:
            self._sharded.reshard()  # else the next pass would not see that weights have changed

    def _call(self, compute: Callable[[ByteLM], TrainOutput]) -> TrainOutput:
        wrapper = self._sharded or self._copied
        if wrapper is None:
            return compute(self.model)

        def plain(model: ByteLM) -> tuple[Tensor, Tensor, Tensor]:  # the wrappers look for tensors in a tuple
            output = compute(model)
            return output.loss, output.bits_per_byte_K, output.valid_count_K

        return TrainOutput(*wrapper(plain))


class _Whole(nn.Module):
    """A model as something that computes whatever it is asked to: both wrappers prepare and end one call."""

    def __init__(self, model: ByteLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[ByteLM], Any]) -> Any:
        return compute(self.model)
