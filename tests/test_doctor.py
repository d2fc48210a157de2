"""The examination: every part is looked at, and each fault that can be made here is found with its remedy."""

import json
import resource
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from bytelm import attention, doctor, machine, probes
from bytelm.doctor import Finding, examine
from bytelm.engine.library import REMEDY, Library
from bytelm.errors import ConfigError


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> list[Finding]:
    folder = tmp_path_factory.mktemp("runs")
    found = list(examine(folder / "not" / "there" / "yet"))
    assert list(folder.iterdir()) == []  # the disk was tried, and nothing stays
    return found


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_every_part_is_looked_at(findings: list[Finding]) -> None:
    parts = {finding.part.partition(":")[0].partition(" (")[0] for finding in findings}
    assert parts >= {
        "other work", "versions", "processor", "GPU", "threads", "products", "attention", "compiler", "engine",
        "memory", "disk", "zstd", "extra",
    }  # fmt: skip


def test_what_is_wrong_comes_with_a_remedy_and_all_is_json(findings: list[Finding]) -> None:
    for finding in findings:
        assert finding.state == "ok" or finding.remedy
        assert "\n" not in finding.text
    json.dumps([asdict(finding) for finding in findings], allow_nan=False)


def test_one_attention_backend_is_the_one_that_training_takes_and_it_works(findings: list[Finding]) -> None:
    backends = [finding for finding in findings if finding.part.startswith("attention")]
    assert {finding.figures["backend"] for finding in backends} == {"torch", "flex", "xformers"}
    (taken,) = (finding for finding in backends if finding.figures["auto"])
    assert taken.figures["works"]
    assert all(finding.figures["works"] or "not here: " in finding.text for finding in backends)


def test_measured_speeds_are_numbers_above_zero(findings: list[Finding]) -> None:
    figures = {name: value for finding in findings for name, value in finding.figures.items()}
    for name in (
        "float32_flops", "bfloat16_flops", "copy_bytes_per_second", "write_bytes_per_second", "flush_s",
        "pack_bytes_per_second", "unpack_bytes_per_second",
    ):  # fmt: skip
        assert figures[name] > 0, name


def test_the_extras_are_those_that_are_declared_for_users(findings: list[Finding]) -> None:
    extras = {
        finding.figures["extra"]: finding.figures["versions"] for finding in findings if "extra" in finding.figures
    }
    assert extras["ray"].keys() == {"ray"}
    assert not {"dev", "bench", "bench-llama", "cross"} & extras.keys()


def test_an_extra_that_is_missing_is_named_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_declared_extras", lambda: {"ray": ["ray-that-is-not-there"]})
    assert "pip install 'bytelm[ray]'" in only(doctor._extras()).text


@pytest.mark.parametrize(
    ("cores", "threads", "state", "remedy"),
    [
        (machine.Cores(installed=8, allowed=2, quota=None), 4, "fault", "OMP_NUM_THREADS to 2"),
        (machine.Cores(installed=8, allowed=8, quota=1.5), 4, "fault", "OMP_NUM_THREADS to 1"),
        (machine.Cores(installed=8, allowed=8, quota=None), 1, "note", "train.threads=8"),
        (machine.Cores(installed=8, allowed=8, quota=None), 4, "ok", None),
        (machine.Cores(installed=1, allowed=1, quota=None), 1, "ok", None),
    ],
)
def test_more_threads_than_cores_are_a_fault_and_idle_cores_worth_a_note(
    monkeypatch: pytest.MonkeyPatch, cores: machine.Cores, threads: int, state: str, remedy: str | None
) -> None:
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    finding = only(doctor._threads())
    assert finding.state == state
    assert (finding.remedy is None) if remedy is None else (remedy in (finding.remedy or ""))


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPU that is here")
def test_a_gpu_that_torch_cannot_use_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "nvidia_gpus", lambda: ["NVIDIA H200"])
    finding = next(finding for finding in doctor._devices() if finding.part == "GPU")
    assert finding.state == "fault"
    assert "NVIDIA H200" in finding.text
    assert finding.remedy


def test_others_at_work_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = [machine.BusyProcess(name="make -j8", number=77, cores=3.5)]
    monkeypatch.setattr(machine, "busy_processes", lambda _: busy)
    finding = only(doctor._others())
    assert finding.state == "note"
    assert "make -j8 (process 77, 3.5)" in finding.text


def test_a_folder_that_cannot_be_written_to_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    finding = only(doctor._disk(tmp_path / "file" / "runs"))
    assert finding.state == "fault"
    assert "a part of the path is a file" in finding.text


def test_a_limit_on_the_size_of_files_is_a_fault(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        finding = only(doctor._disk(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert finding.state == "fault"
    assert "ulimit -f" in finding.text


def loaded(**changed: object) -> Library:
    facts = {"isa": "avx2", "isas": ("avx512", "avx2", "plain"), "runnable": ("avx2", "plain")} | changed
    return Library(path=Path("/lib/engine.so"), compiler="g++ 12", abi=1, handle=Mock(), **facts)  # pyright: ignore


def test_the_engine_is_named_with_its_instruction_set_and_its_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "unavailable_reason", lambda: "")
    monkeypatch.setattr(doctor, "load_library", loaded)
    finding = only(doctor._engine())
    assert finding.state == "ok"
    assert finding.text == "decodes on CPUs with avx2 (it also has avx512, plain), built by g++ 12"
    assert finding.figures["engine"] == "avx2"
    assert finding.figures["runnable"] == ["avx2", "plain"]
    monkeypatch.setattr(doctor, "load_library", lambda: loaded(isas=("avx2",)))
    assert "(its only variant)" in only(doctor._engine()).text


def test_why_torch_decodes_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "load_library", lambda: None)
    monkeypatch.setattr(doctor, "unavailable_reason", lambda: f"no library was built: no compiler; {REMEDY}")
    monkeypatch.delenv("BYTELM_ENGINE", raising=False)
    finding = only(doctor._engine())
    assert finding.state == "fault"
    assert finding.text == "torch decodes on CPUs, several times slower: no library was built: no compiler"
    assert "python -m bytelm.engine.build" in (finding.remedy or "")
    monkeypatch.setenv("BYTELM_ENGINE", "off")
    finding = only(doctor._engine())
    assert finding.state == "note"
    assert finding.remedy == "unset BYTELM_ENGINE"


def test_an_engine_that_cannot_be_chosen_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ConfigError("BYTELM_ENGINE=mmx is unknown")

    monkeypatch.setattr(doctor, "load_library", refuse)
    finding = only(doctor._engine())
    assert finding.state == "fault"
    assert finding.text == "BYTELM_ENGINE=mmx is unknown"
    assert "BYTELM_ENGINE" in (finding.remedy or "")


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_checkpoints_in_main_memory_are_worth_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(machine, "file_system", lambda _: kind)
    finding = only(doctor._disk(tmp_path))
    assert ("main memory" in (finding.remedy or "")) == (kind == "tmpfs")


def test_an_untested_torch_is_worth_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.99.1+cu200")
    finding = only(doctor._versions())
    assert finding.state == "note"
    assert "pip install 'torch>=" in (finding.remedy or "")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda *_: (_ for _ in ()).throw(RuntimeError("no kernel\nfor this")), "it fails: no kernel"),
        (lambda query, *_: query, "it differs from the reference"),
    ],
)
def test_a_backend_that_fails_or_computes_something_else_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[..., torch.Tensor], message: str
) -> None:
    monkeypatch.setattr(attention.attention_torch, "attend", broken)
    found = {finding.figures["backend"]: finding for finding in doctor._attention()}
    assert found["torch"].state == "fault"
    assert message in found["torch"].text


def test_every_probe_of_attention_covers_documents_windows_and_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[attention.Mask] = []
    build = attention.Mask.build

    def noted(length: int, **options: object) -> attention.Mask:
        built.append(build(length, **options))  # pyright: ignore[reportArgumentType]  passed on as they came
        return built[-1]

    monkeypatch.setattr(probes.Mask, "build", noted)
    assert probes.attention_fault("torch", torch.device("cpu"), torch.float32, 16) is None
    for mask in built:
        assert mask.window_bytes is not None
        assert mask.documents_BT is not None
        assert len(mask.documents_BT.unique()) > 1
