"""What ``tests/test_distributed.py`` has torchrun start twice: many small things that two processes do together.

Arguments: a file with the trainings to do, as JSON, and the folder for what was found.
"""

import contextlib
import dataclasses
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from bytelm import step as step_module
from bytelm import train as train_module
from bytelm.config import RunConfig
from bytelm.distributed import SharedModel
from bytelm.errors import BytelmError, CorpusError
from bytelm.events import Refused, Saved
from bytelm.job import Job
from bytelm.loss import TrainOutput, multi_byte_loss
from bytelm.model import ByteLM
from bytelm.packing import PackedBatch, plain_batch
from bytelm.ranks import ALONE, Ranks, joined
from bytelm.split_tensors import whole
from bytelm.step import load
from bytelm.train import train


@contextlib.contextmanager
def poisoned(kind: str | None, ranks: Ranks, poisoner: int) -> Iterator[None]:
    """Inside, the losses or gradients of one rank are not finite behind step 5, until the run has gone back."""
    learn, loss = step_module._learn, step_module.multi_byte_loss

    def poisoned_loss(*arguments: Any, **options: Any) -> TrainOutput:
        output = loss(*arguments, **options)
        if kind == "loss":
            return dataclasses.replace(output, loss=output.loss * torch.nan)
        output.loss.register_hook(lambda gradient: gradient * torch.inf)
        return output

    def learnt(job: Job, *arguments: Any) -> Any:
        bad = kind is not None and ranks.rank == poisoner and job.state.step >= 5 and job.state.safety.rollbacks == 0
        step_module.multi_byte_loss = poisoned_loss if bad else loss
        return learn(job, *arguments)

    step_module._learn = learnt
    yield
    step_module._learn, step_module.multi_byte_loss = learn, loss


def limit_files(limit: int) -> None:
    """Refuse larger files, as a full disk would."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def do_training(one: dict[str, Any], ranks: Ranks, begun: list[None]) -> None:
    """A run, or a part of one.

    Args:
        one: What to do: ``changes``, ``corpus``, ``run``, and where it is wanted the steps after which the last rank
            wants to ``stop``, what is not finite (``poison``), and whether the disk is ``full`` for a while.
        ranks: Who does it.
        begun: An entry for each step that was begun.
    """
    begun.clear()
    last = ranks.rank == ranks.count - 1
    told: list[str] = []
    with poisoned(one.get("poison"), ranks, ranks.count - 1):
        for event in train(
            RunConfig.build("tiny", one["changes"]),
            one["corpus"],
            Path(one["run"]),
            resume="auto",
            should_stop=lambda: last and "stop" in one and len(begun) >= one["stop"],
            ranks=ranks,
        ):
            told.append(type(event).__name__)
            if one.get("full") and ranks.is_first:
                if isinstance(event, Saved) and event.step == 4:
                    limit_files(20_000)
                elif isinstance(event, Refused):
                    limit_files(resource.RLIM_INFINITY)
    if ranks.is_first:
        Path(one["run"], "told.json").write_text(json.dumps(told))


def do_trainings(ranks: Ranks, trainings: list[dict[str, Any]]) -> None:
    """Each by both, or by rank 0 while the other one waits."""
    begun: list[None] = []

    def counted(job: Job) -> list[PackedBatch]:
        begun.append(None)
        return load(job)

    train_module.load = counted
    for one in trainings:
        if one["ranks"] == 2:
            do_training(one, ranks, begun)
        elif ranks.is_first:
            do_training(one, ALONE, begun)
        ranks.first(None)


def gradients(ranks: Ranks, changes: list[str], windows_SBW: Tensor) -> tuple[dict[str, Tensor], bool]:
    """Gradients of one step in micro-batches, and whether nothing was exchanged before its last one."""
    config = RunConfig.build("tiny", changes)
    count = config.heads.count
    counts_K = torch.stack([plain_batch(windows, count).valid_BTK.sum((0, 1)) for windows in windows_SBW]).sum(0)
    torch.manual_seed(0)
    model, alone = ByteLM(config.model, config.heads), ByteLM(config.model, config.heads)
    alone.load_state_dict(model.state_dict())
    shared = SharedModel(model, ranks, config.train.parallel, torch.device("cpu"))  # pyright: ignore[reportArgumentType]
    unexchanged = True
    for number, windows_BW in enumerate(windows_SBW):
        batch = plain_batch(windows_BW[ranks.rank :: ranks.count], count)

        def compute(model: ByteLM, batch: PackedBatch = batch) -> TrainOutput:
            return multi_byte_loss(model, batch, backward=config.heads.backward, counts_K=counts_K)

        last = number == len(windows_SBW) - 1
        shared.add_gradients(compute, last=last)
        if not last:
            compute(alone).loss.backward()
            ours = [parameter.grad for parameter in model.parameters()]
            own = [parameter.grad for parameter in alone.parameters()]
            if config.train.parallel == "fsdp":
                unexchanged &= all(gradient is None for gradient in ours)
            else:  # still of this process alone, though for the factor that makes a mean of two a sum
                for left, right in zip(ours, own, strict=True):
                    assert left is not None
                    assert right is not None
                    unexchanged &= torch.allclose(left, 2 * right, rtol=1e-4, atol=1e-6)
    found = {name: whole(weight.grad) for name, weight in model.named_parameters() if weight.grad is not None}
    return found, unexchanged


def agreements(ranks: Ranks) -> dict[str, Any]:
    """What each rank hears of the others."""
    error: BytelmError | None = None
    try:
        with ranks.agreed():
            if ranks.rank == 1:
                raise CorpusError("found by rank 1")
    except BytelmError as raised:
        error = raised
    return {
        "sums": ranks.sums([ranks.rank + 1.0, 0.5]),
        "any": [ranks.any(ranks.rank == 1), ranks.any(False)],
        "first": ranks.first(f"rank {ranks.rank}"),
        "all": ranks.all(ranks.rank * 10),
        "error": [type(error).__name__, str(error), error is not None and error.told],
    }


def main() -> None:
    """Do all of it, and leave what was found in the folder."""
    plan, place = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    torch.set_num_threads(1)
    with joined() as ranks:
        (place / f"agreements-{ranks.rank}.json").write_text(json.dumps(agreements(ranks)))
        for name, changes in plan["gradients"].items():
            found, unexchanged = gradients(ranks, changes, torch.tensor(plan["windows"], dtype=torch.uint8))
            if ranks.is_first:
                safetensors.torch.save_file(found, place / f"{name}.safetensors", {"unexchanged": str(unexchanged)})
        do_trainings(ranks, plan["trainings"])


if __name__ == "__main__":
    main()
    os._exit(0)  # as the command does, see bytelm.cli.__main__
