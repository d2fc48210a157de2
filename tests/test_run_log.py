import json
import os
import re
import resource
import shutil
from pathlib import Path

import pytest

from bytelm.errors import CheckpointError, StorageError, TrainingError
from bytelm.run_log import PATH_OF_LOG, RunLog, read_log


def record(step: int, kind: str = "train") -> dict[str, object]:
    return {"kind": kind, "step": step, "loss": step / 7}


def test_records_come_back_in_order_with_their_exact_values(tmp_path: Path) -> None:
    with RunLog.start(tmp_path) as log:
        for step in (10, 20, 30):
            log.append(record(step))
    assert read_log(tmp_path) == [record(10), record(20), record(30)]


def test_a_record_can_be_read_before_the_log_is_closed(tmp_path: Path) -> None:
    with RunLog.start(tmp_path) as log:
        log.append(record(1))
        assert read_log(tmp_path) == [record(1)]


def test_starting_empties_an_older_log(tmp_path: Path) -> None:
    with RunLog.start(tmp_path) as log:
        log.append(record(1))
    RunLog.start(tmp_path).close()
    assert read_log(tmp_path) == []


def test_going_on_drops_what_was_logged_after_the_checkpoint_and_keeps_its_own_step(tmp_path: Path) -> None:
    with RunLog.start(tmp_path) as log:
        for step in (10, 20, 30):
            log.append(record(step))
            log.append(record(step, "validation"))
    with RunLog.go_on(tmp_path, 20) as log:
        log.append(record(30))
    assert [(row["kind"], row["step"]) for row in read_log(tmp_path)] == [
        ("train", 10),
        ("validation", 10),
        ("train", 20),
        ("validation", 20),
        ("train", 30),
    ]


def test_going_on_without_a_log_starts_one(tmp_path: Path) -> None:
    with RunLog.go_on(tmp_path, 20) as log:
        log.append(record(30))
    assert read_log(tmp_path) == [record(30)]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_line_that_was_cut_short_is_left_out_and_the_next_record_stands_alone(tmp_path: Path, cut: int) -> None:
    with RunLog.start(tmp_path) as log:
        log.append(record(1))
        log.append(record(2))
    path = tmp_path / PATH_OF_LOG
    os.truncate(path, path.stat().st_size - cut)
    assert read_log(tmp_path) == [record(1)]
    with RunLog.go_on(tmp_path, 2) as log:
        log.append(record(3))
    assert read_log(tmp_path) == [record(1), record(3)]


@pytest.mark.parametrize("line", [b"not json", b"[1]", b'{"kind": "train"}', b'{"step": 1}', b""])
def test_a_line_that_is_no_record_is_named_with_its_number(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / PATH_OF_LOG
    path.write_bytes(json.dumps(record(1)).encode() + b"\n" + line + b"\n")
    with pytest.raises(CheckpointError, match=re.escape(f"{path} line 2")):
        read_log(tmp_path)


def test_a_folder_without_a_log_says_that_it_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="folder of a run"):
        read_log(tmp_path)


def test_what_a_full_disk_refuses_is_kept_and_written_when_there_is_room(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunLog.start(tmp_path) as log:
        log.append(record(1))
        size = (tmp_path / PATH_OF_LOG).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))  # the next record finds room for a part
        try:
            for step in (2, 3):
                with pytest.raises(StorageError, match="larger than this system allows"):
                    log.append(record(step))
            with pytest.raises(StorageError, match="larger than this system allows"):
                log.flush()
            assert read_log(tmp_path) == [record(1)]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        log.append(record(4))
    assert read_log(tmp_path) == [record(step) for step in (1, 2, 3, 4)]


def test_going_back_drops_what_will_be_made_again(tmp_path: Path) -> None:
    with RunLog.start(tmp_path) as log:
        for step in (1, 2, 3):
            log.append(record(step))
        log.go_back(2)
        log.append(record(3, "again"))
    assert read_log(tmp_path) == [record(1), record(2), record(3, "again")]


def test_a_value_that_is_no_number_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with RunLog.start(tmp_path) as log:
        with pytest.raises(ValueError, match="JSON compliant"):
            log.append({"kind": "train", "step": 1, "loss": float("nan")})
        assert read_log(tmp_path) == []


def test_a_place_that_is_no_folder_is_a_refusal_of_the_disk(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        RunLog.start(place)


@pytest.mark.parametrize("taken", ["deleted", "moved", "replaced"])
def test_a_folder_that_vanishes_is_noticed_by_the_next_record(tmp_path: Path, taken: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with RunLog.start(run) as log:
        log.append(record(1))
        if taken == "deleted":
            shutil.rmtree(run)
        else:
            run.rename(tmp_path / "elsewhere")
        if taken == "replaced":
            run.mkdir()
        with pytest.raises(TrainingError, match=r"run has vanished while it was trained: .*--resume auto"):
            log.append(record(2))
        with pytest.raises(TrainingError, match="has vanished"):
            log.flush()


@pytest.mark.parametrize("gone", [False, True])
def test_a_log_that_an_editor_has_replaced_is_gone_on_with(tmp_path: Path, gone: bool) -> None:
    with RunLog.start(tmp_path) as log:
        log.append(record(1))
        path = tmp_path / PATH_OF_LOG
        content = path.read_bytes()
        path.unlink()
        if not gone:
            path.write_bytes(content)
        log.append(record(2))
    assert read_log(tmp_path) == ([record(2)] if gone else [record(1), record(2)])
