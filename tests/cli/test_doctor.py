"""``bytelm doctor`` as a person and as a program meets it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bytelm import doctor
from bytelm.cli import app
from bytelm.doctor import Finding

FINDINGS = [
    Finding(part="threads", state="ok", text="4 cores", figures={"usable": 4}),
    Finding(part="disk", state="note", text="slow\x1b[2J", figures={}, remedy="choose another folder"),
    Finding(part="GPU", state="fault", text="not usable", figures={}, remedy="install torch with CUDA"),
]


@pytest.fixture(autouse=True)
def examined(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    folders: list[Path] = []

    def examine(folder: Path) -> Iterator[Finding]:
        folders.append(folder)
        yield from FINDINGS

    monkeypatch.setattr(doctor, "examine", examine)
    return folders


def test_each_finding_is_a_line_and_each_fault_has_its_remedy_below(
    capsys: pytest.CaptureFixture[str], examined: list[Path]
) -> None:
    assert app.run(["doctor", "some/runs"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ok     threads: 4 cores",
        "NOTE   disk: slow\\x1b[2J",
        "       remedy: choose another folder",
        "FAULT  GPU: not usable",
        "       remedy: install torch with CUDA",
        "faults: 1, notes: 1",
    ]
    assert examined == [Path("some/runs")]


def test_json_holds_the_figures(capsys: pytest.CaptureFixture[str], examined: list[Path]) -> None:
    assert app.run(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["faults"], told["notes"]) == (1, 1)
    assert told["findings"][0]["figures"] == {"usable": 4}
    assert told["findings"][2]["remedy"] == "install torch with CUDA"
    assert examined == [Path()]
