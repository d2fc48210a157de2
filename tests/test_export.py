"""A model alone says what the run's model says, and is as well guarded as a checkpoint."""

import importlib.resources
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bytelm import shipped
from bytelm.checkpoint import Snapshot, find_checkpoint, load_model, load_snapshot, read_corpus, save_checkpoint
from bytelm.config import RunConfig
from bytelm.decode import DecodePlan, prior_plan
from bytelm.drafting import Calibration, StepCost
from bytelm.errors import BytelmError, CheckpointError, StorageError
from bytelm.export import export_model
from bytelm.fine_tuning import read_source
from bytelm.model import ByteLM
from bytelm.plans import PATH_OF_PLAN, find_plan, run_folder, write_plan
from bytelm.tasks import results_folder

CONFIG = RunConfig.build(
    "tiny",
    ["model.d_model=16", "model.layers=1", "model.attention_heads=2", "model.kv_heads=1", "model.d_ff=16"],
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    snapshot = Snapshot(
        step=7,
        config=CONFIG,
        corpus="/somewhere/corpus",
        fingerprint="f00d",
        model=ByteLM(CONFIG.model, CONFIG.heads).state_dict(),
        optimizer={},
        random={"cpu": torch.get_rng_state()},
        progress={},
    )
    save_checkpoint(folder, snapshot, keep=1)
    return folder


def test_a_float32_export_is_the_model_of_the_run(run: Path, tmp_path: Path) -> None:
    exported, config = load_model(export_model(run, tmp_path / "model", dtype="float32"))
    model, expected = load_model(run)
    assert config == expected == CONFIG
    for name, weight in model.state_dict().items():
        assert torch.equal(exported.state_dict()[name], weight)
    assert read_corpus(run) == ("/somewhere/corpus", "f00d")
    assert read_corpus(tmp_path / "model") == ("corpus", "f00d")
    assert b"/somewhere" not in b"".join(path.read_bytes() for path in (tmp_path / "model").iterdir())


def test_a_bfloat16_export_is_the_model_with_rounded_weights(run: Path, tmp_path: Path) -> None:
    folder = export_model(run, tmp_path / "model")
    exported, _ = load_model(folder)
    model, _ = load_model(run)
    for name, weight in model.state_dict().items():
        assert exported.state_dict()[name].dtype == torch.float32
        assert torch.equal(exported.state_dict()[name], weight.bfloat16().float())
    size = (folder / "model.safetensors").stat().st_size
    assert size < 0.7 * (find_checkpoint(run) / "model.safetensors").stat().st_size
    assert sorted(path.name for path in folder.iterdir()) == ["config.toml", "manifest.json", "model.safetensors"]


def test_whoever_may_read_the_settings_may_read_the_weights(run: Path, tmp_path: Path) -> None:
    folder = export_model(run, tmp_path / "model")
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_what_exists_is_not_written_over(run: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(StorageError, match="it exists; choose another --out"):
        export_model(run, tmp_path / "model")


def test_training_does_not_go_on_from_a_model_alone(run: Path, tmp_path: Path) -> None:
    folder = export_model(run, tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"holds a model alone, .* --init-from"):
        load_snapshot(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.toml", "manifest.json"])
def test_damage_is_noticed(name: str, run: Path, tmp_path: Path) -> None:
    folder = export_model(run, tmp_path / "model")
    sound = (folder / name).read_bytes()
    for at in range(0, len(sound), max(1, len(sound) // 40)):
        (folder / name).write_bytes(sound[:at] + bytes([sound[at] ^ 4]) + sound[at + 1 :])
        with pytest.raises(CheckpointError, match="is damaged"):
            load_model(folder)
    (folder / name).unlink()
    with pytest.raises(BytelmError):
        load_model(folder)


def test_a_refused_write_leaves_nothing(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="something else is in its place; choose another --out"):
        export_model(run, tmp_path / "file" / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run"]


@pytest.fixture
def installed(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Ships a model in an installation of its own, whose resources are in a folder of the test."""
    package = tmp_path / "package"
    monkeypatch.setattr(importlib.resources, "files", lambda _: package)

    def ship(name: str) -> Path:
        return export_model(run, package / "models" / name)

    return ship


def test_a_name_without_a_path_means_a_shipped_model(
    installed: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = installed("pocket")
    assert shipped.shipped_models() == {"pocket": folder}
    assert find_checkpoint(Path("pocket")) == folder
    assert load_model(Path("pocket"))[1] == CONFIG
    assert read_source(Path("pocket")).checkpoint == folder  # --init-from pocket
    for path in ("./x/pocket", "other"):
        with pytest.raises(CheckpointError, match="does not exist"):
            find_checkpoint(Path(path))


def test_a_run_with_the_name_of_a_shipped_model_comes_first(
    installed: Callable[[str], Path], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    installed("pocket")
    shutil.copytree(run, "pocket")
    assert find_checkpoint(Path("pocket")) == Path("pocket/checkpoints/step-00000007")


def test_what_is_measured_of_a_shipped_model_is_kept_outside_of_the_installation(
    installed: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, name = installed("pocket"), Path("pocket")
    before = sorted(folder.iterdir())
    assert results_folder(find_checkpoint(name)) == Path("eval")
    assert run_folder(name) == tmp_path / "cache" / "bytelm" / "models" / "pocket"

    model = load_model(name)[0]
    assert find_plan(name, model) == (None, "")
    calibration = Calibration({"head 0 3": (3.0, 4.0)})
    path = write_plan(run_folder(name), DecodePlan(((10, StepCost((1, 4), (1.0, 1.5), 0.1)),), calibration), model)
    plan, why = find_plan(name, model)
    assert plan is not None
    assert (plan.cost_at(0).seconds, why) == ((1.0, 1.5), "")
    assert sorted(folder.iterdir()) == before

    # What came with the model serves until something was measured here: the worth of drafts, not another's costs.
    (folder / PATH_OF_PLAN).write_text(path.read_text().replace('"device": "', '"device": "Other '))
    path.unlink()
    plan, why = find_plan(name, model)
    assert plan is not None
    assert (plan.costs, plan.calibration, why) == (prior_plan(model).costs, calibration, "")

    # By the path of its folder it is the same model; and a plan that is refused hides nothing that came with it.
    assert run_folder(folder) == run_folder(name)
    assert results_folder(folder) == Path("eval")
    path.write_text("{")
    for place in (name, folder):
        plan, why = find_plan(place, model)
        assert plan is not None
        assert plan.calibration == calibration
        assert "run bytelm tune again" in why
