"""What ``tests/test_distributed.py`` has torchrun start twice: many small things that two processes do together.

Arguments: a file with the trainings to do, as JSON, and the folder for what was found.
"""

import json
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from bytelm import train as train_module
from bytelm.config import RunConfig
from bytelm.distributed import SharedModel
from bytelm.errors import BytelmError, CorpusError
from bytelm.job import Job
from bytelm.loss import TrainOutput, multi_byte_loss
from bytelm.model import ByteLM
from bytelm.packing import PackedBatch, plain_batch
from bytelm.ranks import ALONE, Ranks, joined
from bytelm.split_tensors import whole
from bytelm.step import load
from bytelm.train import train


def do_trainings(ranks: Ranks, trainings: list[dict[str, Any]]) -> None:
    """Each is a run, or a part of one; those for one process are done by rank 0 while the other one waits."""
    begun: list[None] = []

    def counted(job: Job) -> list[PackedBatch]:
        begun.append(None)
        return load(job)

    train_module.load = counted
    for one in trainings:
        with_all = one["ranks"] == 2
        if with_all or ranks.is_first:
            begun.clear()
            last, stop = ranks.rank == 1 or not with_all, one.get("stop")
            for _ in train(
                RunConfig.build("tiny", one["changes"]),
                one["corpus"],
                Path(one["run"]),
                resume="auto",
                # Only one of them wants to stop.
                should_stop=lambda last=last, stop=stop: last and stop is not None and len(begun) >= stop,
                ranks=ranks if with_all else ALONE,
            ):
                pass
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
