"""TensorBoard: which figures an event gives, and what the real writer leaves, where it is installed."""

import importlib.util
import sys
from pathlib import Path

import pytest

from bytelm.errors import ConfigError
from bytelm.events import Finished, Progress, RolledBack, Started, Validation
from bytelm.tensorboard import FOLDER, TensorBoard, as_markdown, scalars

INSTALLED = importlib.util.find_spec("tensorboard") is not None


def progress(step: int, first: float | None = 2.0) -> Progress:
    return Progress(
        step=step,
        fraction=0.5,
        bytes_seen=100,
        flops=1e6,
        elapsed_s=1.0,
        bits_per_byte_by_head=(first, 3.0),
        loss=None,
        grad_norm=0.5,
        learning_rate=0.001,
        bytes_per_second=100.0,
        mfu=None,
        memory_bytes=7,
        peak_memory_bytes=9,
        skipped_steps=1,
        replaced_windows=0,
    )


def validation(step: int) -> Validation:
    return Validation(
        step=step,
        bytes_seen=100,
        flops=1e6,
        elapsed_s=1.0,
        bits_per_byte_by_head=(2.5, 3.5),
        best_bits_per_byte=2.5,
        agreement_by_head=(1.0, 0.25),
        bytes_per_step_estimate=1.25,
        scored_bytes=10,
        context_bytes=8,
        stride=4,
        prompt="<b>",
        sample="*not* bold\x1b",
    )


def started(run: Path, step: int) -> Started:
    return Started(
        run=run,
        parameters=1,
        device="cpu",
        precision="float32",
        attention="torch",
        attention_reason="",
        compiled=False,
        best_bits_per_byte=None,
        held_out_bytes=10,
        step=step,
        resumed_from=None,
        damaged=(),
    )


def test_a_logged_step_gives_its_figures_and_leaves_out_what_is_unknown() -> None:
    assert dict(scalars(progress(3, first=None))) == {
        "training/bits_per_byte_head_1": 3.0,
        "rates/gradient_norm": 0.5,
        "rates/learning_rate": 0.001,
        "rates/bytes_per_second": 100.0,
        "rates/skipped_steps": 1.0,
        "memory/now_bytes": 7.0,
        "memory/peak_bytes": 9.0,
    }


def test_a_validation_gives_bits_and_acceptance_of_each_head() -> None:
    assert dict(scalars(validation(3))) == {
        "held_out/bits_per_byte_head_0": 2.5,
        "held_out/bits_per_byte_head_1": 3.5,
        "acceptance/head_1": 0.25,
        "acceptance/bytes_per_step": 1.25,
    }


def test_what_a_model_wrote_is_a_block_of_code() -> None:
    assert as_markdown("<b>\n*x*\x1b") == "    <b>\n    *x*\\x1b"


def test_a_missing_package_is_named_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # Python's own way to say "not there"
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'bytelm\[tensorboard\]'"):
        TensorBoard()


@pytest.mark.skipif(not INSTALLED, reason="the package tensorboard is not installed")
def test_the_real_writer_keeps_what_was_shown_and_forgets_what_was_taken_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (  # pyright: ignore[reportMissingImports]
        EventAccumulator,
    )

    with TensorBoard() as board:
        board.show(started(tmp_path, 0))
        for step in (1, 2, 3):
            board.show(progress(step))
        board.show(RolledBack(step=1, from_step=3, checkpoint=None, learning_rate_ratio=0.5, damaged=()))
        board.show(progress(2, first=1.0))
        board.show(validation(2))
        board.show(Finished(reason="budget", step=2, bytes_seen=1, elapsed_s=1.0, checkpoint=tmp_path))
    found = EventAccumulator(str(tmp_path / FOLDER))
    found.Reload()
    values = [(event.step, event.value) for event in found.Scalars("training/bits_per_byte_head_0")]
    assert values == [(1, 2.0), (2, 1.0)]
    assert [event.step for event in found.Scalars("held_out/bits_per_byte_head_0")] == [2]
