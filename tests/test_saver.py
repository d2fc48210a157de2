"""Saving beside the training: what is saved is the moment of the call, and nothing that goes wrong is lost."""

import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bytelm import saver as saver_module
from bytelm.checkpoint import Snapshot, checkpoints, load_snapshot, save_checkpoint
from bytelm.config import RunConfig
from bytelm.errors import StorageError
from bytelm.model import ByteLM
from bytelm.saver import Saver

CONFIG = RunConfig.build(
    "tiny",
    [
        "model.d_model=16",
        "model.layers=1",
        "model.attention_heads=2",
        "model.kv_heads=1",
        "model.d_ff=16",
        "heads.count=2",
    ],
)


def snapshot_of(step: int) -> Snapshot:
    torch.manual_seed(step)
    model = ByteLM(CONFIG.model, CONFIG.heads).state_dict()
    return Snapshot(
        step=step,
        config=CONFIG,
        corpus="/somewhere/corpus",
        fingerprint="f00d",
        model=model,
        average={name: tensor / 2 for name, tensor in model.items()},
        optimizer={f"{name}.exp_avg": torch.randn_like(value) for name, value in model.items()},
        random={"cpu": torch.get_rng_state()},
        progress={"bytes_seen": step},
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    return run


class Gate:
    """Takes the place of ``save_checkpoint``: writes only when it is let."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        monkeypatch.setattr(saver_module, "save_checkpoint", self)

    def __call__(self, run: Path, snapshot: Snapshot, *, keep: int, best: bool = False) -> Path:
        self.entered.set()
        self.open.wait()
        return save_checkpoint(run, snapshot, keep=keep, best=best)


def equal(left: Snapshot, right: Snapshot) -> bool:
    def tensors(snapshot: Snapshot) -> dict[str, Tensor]:
        parts = ("model", "average", "optimizer", "random")
        return {f"{part} {name}": tensor for part in parts for name, tensor in getattr(snapshot, part).items()}

    ours, others = tensors(left), tensors(right)
    return ours.keys() == others.keys() and all(torch.equal(ours[name], others[name]) for name in ours)


@pytest.mark.parametrize("background", [True, False])
def test_what_is_saved_is_what_was_given(run: Path, background: bool) -> None:
    saver = Saver(run, keep=2, background=background)
    for step in (10, 20, 30):
        saver.save(snapshot_of(step), best=step == 10)
    ended = saver.outcomes(wait=True)
    assert [(outcome.step, outcome.refusal) for outcome in ended] == [(10, None), (20, None), (30, None)]
    assert [outcome.checkpoint for outcome in ended][1:] == checkpoints(run)[1:]
    assert [path.name[-2:] for path in checkpoints(run)] == ["10", "20", "30"]  # the best one stays
    for checkpoint in checkpoints(run):
        assert equal(load_snapshot(checkpoint), snapshot_of(int(checkpoint.name[-2:])))
    assert saver.outcomes(wait=True) == []


def test_what_changes_after_the_call_is_not_saved(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    saver = Saver(run, keep=2, background=True)
    snapshot = snapshot_of(10)
    saver.save(snapshot)
    gate.entered.wait()
    for part in (snapshot.model, snapshot.average, snapshot.optimizer, snapshot.random):
        for tensor in part.values():
            tensor.zero_()
    assert saver.outcomes() == []  # it goes on meanwhile
    gate.open.set()
    (outcome,) = saver.outcomes(wait=True)
    assert outcome.checkpoint is not None
    assert equal(load_snapshot(outcome.checkpoint), snapshot_of(10))


def test_no_more_than_one_is_being_written(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    saver = Saver(run, keep=2, background=True)
    saver.save(snapshot_of(10))
    gate.entered.wait()
    gate.entered.clear()
    second = threading.Thread(target=saver.save, args=(snapshot_of(20),))
    second.start()
    assert not gate.entered.wait(0.2)
    gate.open.set()
    second.join()
    assert [outcome.step for outcome in saver.outcomes(wait=True)] == [10, 20]


@pytest.mark.parametrize("background", [True, False])
def test_a_disk_that_refuses_is_told_each_time_and_the_last_good_checkpoint_stays(run: Path, background: bool) -> None:
    saver = Saver(run, keep=1, background=background)
    saver.save(snapshot_of(10))
    saver.outcomes(wait=True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        for step in (20, 30):
            saver.save(snapshot_of(step))
            (outcome,) = saver.outcomes(wait=True)
            assert outcome.checkpoint is None
            assert isinstance(outcome.refusal, StorageError)
            assert f"step-000000{step}" in str(outcome.refusal)
            assert equal(load_snapshot(checkpoints(run)[-1]), snapshot_of(10))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    saver.save(snapshot_of(40))
    assert saver.outcomes(wait=True)[0].refusal is None
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000040"]


def test_an_error_of_our_own_comes_out_where_outcomes_are_asked_for(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Path:
        raise ZeroDivisionError

    monkeypatch.setattr(saver_module, "save_checkpoint", broken)
    saver = Saver(run, keep=1, background=True)
    saver.save(snapshot_of(10))
    with pytest.raises(ZeroDivisionError):
        saver.outcomes(wait=True)
    with pytest.raises(ZeroDivisionError):
        Saver(run, keep=1, background=False).save(snapshot_of(10))


def test_the_copies_take_the_memory_of_one_checkpoint_however_many_are_written(run: Path) -> None:
    saver = Saver(run, keep=1, background=True)
    places = []
    for step in (10, 20):
        saver.save(snapshot_of(step))
        places.append({name: copy.data_ptr() for name, copy in saver._copies.items()})
    saver.outcomes(wait=True)
    assert places[0] == places[1]
    assert sum(copy.nbytes for copy in saver._copies.values()) == sum(
        tensor.nbytes
        for part in ("model", "average", "optimizer", "random")
        for tensor in getattr(snapshot_of(10), part).values()
    )


LEAVING = """
import pathlib, sys, threading, torch
from bytelm import saver
from bytelm.checkpoint import Snapshot
from bytelm.config import RunConfig
saver.save_checkpoint = lambda *_, **__: threading.Event().wait()
weights = {"a": torch.zeros(1)}
snapshot = Snapshot(
    step=1, config=RunConfig(), corpus="", fingerprint="", model=weights, optimizer={}, random={}, progress={}
)
saver.Saver(pathlib.Path(sys.argv[1]), keep=1, background=True).save(snapshot)
sys.exit(130)
"""


def test_a_process_that_leaves_at_once_waits_for_no_writer(run: Path) -> None:
    left = subprocess.run([sys.executable, "-c", LEAVING, str(run)], capture_output=True, check=False)
    assert left.returncode == 130
    assert left.stderr == b""
