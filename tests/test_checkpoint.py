import json
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bytelm.checkpoint import (
    Snapshot,
    _tensor_file_bytes,
    best_checkpoint,
    checkpoint_bytes,
    checkpoints,
    find_checkpoint,
    find_newest_sound,
    latest_checkpoint,
    load_model,
    load_snapshot,
    read_corpus,
    save_checkpoint,
    set_aside,
)
from bytelm.config import RunConfig
from bytelm.errors import CheckpointError, StorageError
from bytelm.model import ByteLM

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "config.toml", "manifest.json")
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
    model = ByteLM(CONFIG.model, CONFIG.heads)
    return Snapshot(
        step=step,
        config=CONFIG,
        corpus="/somewhere/corpus",
        fingerprint="f00d",
        model=model.state_dict(),
        optimizer={f"{name}.exp_avg": torch.randn_like(value) for name, value in model.named_parameters()},
        random={"cpu": torch.get_rng_state()},
        progress={"bytes_seen": step * 4096, "elapsed_s": 0.1 + step, "loader": {"window": step}},
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    return run


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("saved") / "run"
    run.mkdir()
    for step in (10, 20):
        save_checkpoint(run, snapshot_of(step), keep=2)
    return run


@pytest.fixture
def saved(two_saved: Path, run: Path) -> Path:
    shutil.copytree(two_saved, run, dirs_exist_ok=True)
    return run


def newest(run: Path) -> Path:
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None
    return checkpoint


def test_what_was_saved_comes_back_bit_for_bit(saved: Path) -> None:
    expected, found = snapshot_of(20), load_snapshot(newest(saved))
    assert (found.step, found.config, found.corpus, found.fingerprint, found.progress) == (
        expected.step,
        expected.config,
        expected.corpus,
        expected.fingerprint,
        expected.progress,
    )
    for name in ("model", "optimizer", "random"):
        before, after = getattr(expected, name), getattr(found, name)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_size_of_a_checkpoint_is_known_before_it_is_written(saved: Path) -> None:
    snapshot = snapshot_of(20)
    sizes = {path.name: path.stat().st_size for path in newest(saved).iterdir()}
    assert _tensor_file_bytes(snapshot.model) == sizes["model.safetensors"]
    beside = {f"optimizer.{name}": tensor for name, tensor in snapshot.optimizer.items()}
    assert _tensor_file_bytes({**beside, "random.cpu": snapshot.random["cpu"]}) == sizes["optimizer.safetensors"]
    assert abs(sum(sizes.values()) - checkpoint_bytes(snapshot)) < 1000  # of paths and numbers in the text files


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8])
def test_the_size_of_a_file_of_tensors_is_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    for count in range(1, 12):  # headers of all lengths modulo eight
        tensors = {f"{'n' * count}.{place}": torch.zeros(count, 3, place).to(dtype) for place in range(count)}
        tensors["scalar"] = torch.zeros(())
        safetensors.torch.save_file(tensors, tmp_path / "file")
        assert _tensor_file_bytes(tensors) == (tmp_path / "file").stat().st_size


def test_beside_an_average_the_trained_weights_come_back_and_the_average_is_what_loads(run: Path) -> None:
    plain = snapshot_of(10)
    snapshot = replace(plain, average={name: tensor + 1 for name, tensor in plain.model.items()})
    checkpoint = save_checkpoint(run, snapshot, keep=1)
    found = load_snapshot(checkpoint)
    for name in ("model", "average", "optimizer", "random"):
        before, after = getattr(snapshot, name), getattr(found, name)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    weights = load_model(run)[0].state_dict()
    assert all(torch.equal(weights[name], snapshot.average[name]) for name in weights)
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    assert abs(size - checkpoint_bytes(snapshot)) < 1000


def test_a_checkpoint_of_the_first_version_still_loads(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bytelm.checkpoint_files.FORMAT_VERSION", 1)
    checkpoint = save_checkpoint(run, snapshot_of(10), keep=1)
    monkeypatch.undo()
    assert json.loads((checkpoint / "manifest.json").read_bytes())["version"] == 1
    assert load_snapshot(checkpoint).step == 10


def test_the_best_checkpoint_stays_and_has_a_name(run: Path) -> None:
    for step in range(10, 70, 10):
        save_checkpoint(run, snapshot_of(step), keep=2, best=step in (20, 30))
    assert [path.name for path in checkpoints(run)] == ["step-00000030", "step-00000050", "step-00000060"]
    assert best_checkpoint(run) == run / "checkpoints" / "step-00000030"
    assert find_checkpoint(run / "checkpoints" / "best").name == "step-00000030"
    assert find_checkpoint(run).name == "step-00000060"
    model, _ = load_model(run / "checkpoints" / "best")
    expected = snapshot_of(30).model
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_a_run_that_was_copied_without_its_links_goes_on(run: Path, tmp_path: Path) -> None:
    save_checkpoint(run, snapshot_of(10), keep=2, best=True)
    copied = tmp_path / "copied"
    shutil.copytree(run, copied)  # a folder in the place of the link
    saved = save_checkpoint(copied, snapshot_of(20), keep=2, best=True)
    assert best_checkpoint(copied) == saved
    assert [path.name for path in checkpoints(copied)] == ["step-00000010", "step-00000020"]


def test_a_best_checkpoint_that_is_gone_is_none(run: Path) -> None:
    assert best_checkpoint(run) is None
    save_checkpoint(run, snapshot_of(10), keep=1, best=True)
    shutil.rmtree(run / "checkpoints" / "step-00000010")
    assert best_checkpoint(run) is None
    with pytest.raises(CheckpointError):
        find_checkpoint(run / "checkpoints" / "best")
    save_checkpoint(run, snapshot_of(20), keep=1, best=True)
    assert best_checkpoint(run) == run / "checkpoints" / "step-00000020"


def test_a_model_loads_from_the_run_and_from_a_checkpoint_of_it(saved: Path) -> None:
    for path, step in ((saved, 20), (saved / "checkpoints" / "step-00000010", 10)):
        model, config = load_model(path)
        assert config == CONFIG
        assert not model.training
        weights = snapshot_of(step).model
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        assert model(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, 2, 320)


def test_loading_a_model_draws_no_random_numbers(saved: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_model(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_corpus_of_a_run_is_remembered(saved: Path) -> None:
    assert read_corpus(saved) == ("/somewhere/corpus", "f00d")


def test_only_the_newest_checkpoints_are_kept(run: Path) -> None:
    for step in (5, 10, 15, 100_000_000):
        save_checkpoint(run, snapshot_of(step), keep=2)
    assert [path.name for path in checkpoints(run)] == ["step-00000015", "step-100000000"]
    save_checkpoint(run, snapshot_of(100_000_001), keep=1)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-100000001"]


def flips(size: int) -> Iterator[int]:
    """A bit in the first byte, in the last, and in some between."""
    yield from (0, 8 * size - 1)
    yield from ((8 * size * part) // 13 + part for part in range(1, 13))


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_noticed_and_the_file_named(saved: Path, name: str) -> None:
    path = newest(saved) / name
    content = path.read_bytes()
    for bit in flips(len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=name if name != "manifest.json" else "manifest|version|damaged"):
            load_snapshot(newest(saved))
    path.write_bytes(content)
    load_snapshot(newest(saved))


def test_a_manifest_has_no_byte_that_does_not_count(saved: Path) -> None:
    path = newest(saved) / "manifest.json"
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 7):  # each byte, and each place in a byte
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read_corpus(newest(saved))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0.0, 0.5, 1.0])
def test_a_truncated_file_is_noticed_and_named(saved: Path, name: str, keep: float) -> None:
    path = newest(saved) / name
    content = path.read_bytes()
    path.write_bytes(content[: min(int(len(content) * keep), len(content) - 1)])
    with pytest.raises(CheckpointError, match=name):
        load_snapshot(newest(saved))
    with pytest.raises(CheckpointError, match=name):
        load_model(saved)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_noticed_and_named(saved: Path, name: str) -> None:
    (newest(saved) / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_snapshot(newest(saved))
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_model(saved)


@pytest.mark.parametrize("name", [name for name in FILES if name != "config.toml"])  # which is the same in both
def test_a_file_of_another_checkpoint_is_noticed(saved: Path, name: str) -> None:
    older, newer = checkpoints(saved)
    shutil.copy(older / name, newer / name)
    with pytest.raises(CheckpointError, match="damaged"):
        load_snapshot(newer)


def test_two_files_with_their_names_swapped_are_noticed(saved: Path) -> None:
    checkpoint = newest(saved)
    (checkpoint / "model.safetensors").rename(checkpoint / "x")
    (checkpoint / "optimizer.safetensors").rename(checkpoint / "model.safetensors")
    (checkpoint / "x").rename(checkpoint / "optimizer.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(checkpoint)


def test_a_checkpoint_under_the_name_of_another_step_is_noticed(saved: Path) -> None:
    place = newest(saved).with_name("step-00000030")
    newest(saved).rename(place)
    with pytest.raises(CheckpointError, match="step 20"):
        load_model(place)


def damaged_at_random(checkpoint: Path, other: Path, draw: random.Random) -> str:
    """Damage a checkpoint in one of the ways in which disks, copies and people do; tells how."""
    name = draw.choice(FILES)
    path = checkpoint / name
    content = path.read_bytes()
    kind = draw.choice(["flip", "flip", "cut", "longer", "zeros", "gone", "of another", "swapped", "moved"])
    if kind == "flip":
        place = draw.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :])
    elif kind == "cut":
        path.write_bytes(content[: draw.randrange(len(content))])
    elif kind == "longer":
        path.write_bytes(content + draw.randbytes(draw.randrange(1, 100)))
    elif kind == "zeros":  # a page that was never written
        place = draw.randrange(len(content))
        changed = content[:place] + bytes(len(content[place : place + 4096])) + content[place + 4096 :]
        path.write_bytes(changed if changed != content else content[:-1])
    elif kind == "gone":
        path.unlink()
    elif kind == "of another":
        path.write_bytes((other / name).read_bytes() if name != "config.toml" else b"")
    elif kind == "swapped":
        second = checkpoint / draw.choice([one for one in FILES if one != name])
        path.write_bytes(second.read_bytes())
        second.write_bytes(content)
    else:  # a piece of it that stands somewhere else
        start, size = draw.randrange(len(content)), draw.randrange(1, 5000)
        piece, rest = content[start : start + size], content[:start] + content[start + size :]
        changed = piece + rest
        path.write_bytes(changed if changed != content else b"")
    return f"{name}: {kind}"


def test_of_five_hundred_random_damages_none_goes_unnoticed(saved: Path) -> None:
    draw = random.Random(0)
    other, checkpoint = checkpoints(saved)
    whole = {name: (checkpoint / name).read_bytes() for name in FILES}
    for _ in range(500):
        what = damaged_at_random(checkpoint, other, draw)
        try:
            load_snapshot(checkpoint)
        except CheckpointError:
            for name, content in whole.items():
                (checkpoint / name).write_bytes(content)
        else:
            pytest.fail(f"not noticed: {what}")
    load_snapshot(checkpoint)


def test_a_version_that_is_not_known_is_refused_with_what_to_do(saved: Path) -> None:
    path = newest(saved) / "manifest.json"
    manifest = json.loads(path.read_bytes())
    path.write_text(json.dumps({**manifest, "version": 3}))
    with pytest.raises(CheckpointError, match=r"version 3 .* install a newer bytelm"):
        load_model(saved)


def test_damage_names_the_older_checkpoint_that_can_be_used(saved: Path) -> None:
    (newest(saved) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"an older one is .*step-00000010"):
        load_model(saved)
    shutil.rmtree(saved / "checkpoints" / "step-00000010")
    with pytest.raises(CheckpointError, match="no older one"):
        load_model(saved)


def test_the_newest_sound_checkpoint_is_found_and_the_damaged_ones_are_told(saved: Path) -> None:
    (newest(saved) / "optimizer.safetensors").write_bytes(b"")
    found = find_newest_sound(saved)
    assert found is not None
    assert found.snapshot.step == 10
    assert [path.name for path, _ in found.damaged] == ["step-00000020"]
    assert "optimizer.safetensors" in found.damaged[0][1]


def test_a_run_whose_checkpoints_are_all_damaged_says_so_and_starts_nothing(saved: Path) -> None:
    for checkpoint in checkpoints(saved):
        (checkpoint / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"every checkpoint .* is damaged.*step-00000020.*step-00000010"):
        find_newest_sound(saved)


def test_a_run_without_checkpoints_has_no_newest_one(run: Path) -> None:
    assert find_newest_sound(run) is None
    assert latest_checkpoint(run) is None


def test_a_damaged_checkpoint_that_is_set_aside_counts_no_longer_and_stays(saved: Path) -> None:
    place = set_aside(newest(saved))
    assert [path.name for path in checkpoints(saved)] == ["step-00000010"]
    assert (place / "model.safetensors").is_file()


def test_what_a_killed_save_left_is_no_checkpoint_and_is_cleared_by_the_next(saved: Path) -> None:
    leftover = saved / "checkpoints" / ".step-00000030.part"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    assert newest(saved).name == "step-00000020"
    save_checkpoint(saved, snapshot_of(25), keep=2)
    assert not leftover.exists()


def test_a_step_that_is_saved_again_replaces_the_damaged_one(saved: Path) -> None:
    (newest(saved) / "model.safetensors").write_bytes(b"")
    save_checkpoint(saved, snapshot_of(20), keep=2)
    assert load_snapshot(newest(saved)).step == 20
    assert len(checkpoints(saved)) == 2


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nothing", "does not exist"),
        ("folder", "not the folder of a run"),
        ("file", "not the folder of a run"),
        ("run", "no checkpoint yet"),
    ],
)
def test_a_place_without_a_checkpoint_says_what_it_is(tmp_path: Path, kind: str, message: str) -> None:
    for folder in ("folder", "run"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "run" / "config.toml").touch()
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(tmp_path / kind)


def test_a_full_disk_is_named_and_the_older_checkpoint_stays_whole(saved: Path) -> None:
    before = {path: path.read_bytes() for path in sorted(saved.rglob("*")) if path.is_file()}
    largest = max(len(content) for content in before.values())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for limit in (100, largest // 3, largest - 1):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            with pytest.raises(StorageError, match="step-00000030"):
                save_checkpoint(saved, snapshot_of(30), keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert {path: path.read_bytes() for path in sorted(saved.rglob("*")) if path.is_file()} == before


def test_a_process_killed_at_any_flush_leaves_only_whole_checkpoints(saved: Path) -> None:
    # Children of one process die without a word at their n-th flush to the disk; then whatever is there must be whole.
    program = """
import dataclasses, os, sys
from pathlib import Path
from bytelm.checkpoint import checkpoints, find_newest_sound, load_snapshot, save_checkpoint

run = Path(sys.argv[1])
snapshot = dataclasses.replace(find_newest_sound(run).snapshot, step=30)
flush = os.fsync

def die_at(last):
    calls = iter(range(1, 1000))
    def counted(descriptor):
        if next(calls) == last:
            os._exit(9)
        flush(descriptor)
    os.fsync = counted
    save_checkpoint(run, snapshot, keep=2)
    os._exit(0)

deaths, code = 0, 9
while code == 9:
    if (child := os.fork()) == 0:
        die_at(deaths + 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    deaths += code == 9
    steps = [load_snapshot(checkpoint).step for checkpoint in checkpoints(run)]
    assert 20 in steps or code == 0, steps
print(code, deaths >= 8, steps)
"""
    outcome = subprocess.run([sys.executable, "-c", program, str(saved)], check=True, capture_output=True, text=True)
    assert outcome.stdout.split("\n")[0] == "0 True [20, 30]"
