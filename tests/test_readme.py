"""The README's commands run as they stand, on small data and short budgets."""

import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# What the test changes in a command, so that it takes seconds. Each must occur, or this table is out of date.
SHORTER = {
    "--time-budget 5m": "--steps 12",
    "--steps 200": "--steps 3",
    "--max-bytes 200": "--max-bytes 40",
    "~/code notes.txt": "code notes.txt",
    "--preset tiny": (
        "--preset tiny --set data.window_bytes=64 --set model.local_window_bytes=32 --set model.d_model=32"
        " --set model.layers=2 --set train.validation_bytes=2000"
    ),
}


def blocks(language: str) -> list[str]:
    return [body for found, body in FENCE.findall(README) if found == language]


def commands() -> list[str]:
    return [line for body in blocks("sh") for line in body.splitlines() if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    (folder / "code").mkdir()
    for number in range(8):
        (folder / "code" / f"part{number}.py").write_text(f"def main():\n    return {number}\n" * 200, encoding="utf-8")
    (folder / "notes.txt").write_text("A note on bytes. " * 500, encoding="utf-8")
    return folder


def test_every_shortcut_of_this_test_occurs_in_the_readme() -> None:
    text = "\n".join(commands())
    assert [long for long in SHORTER if long not in text] == []


def test_the_commands_of_the_readme_run_in_order(workplace: Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    ran = 0
    for command in commands():
        if not command.startswith("bytelm "):
            continue
        shorter = functools.reduce(lambda text, change: text.replace(*change), SHORTER.items(), command)
        done = subprocess.run(
            shlex.split(shorter), cwd=workplace, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{shorter}\n{done.stderr}"
        ran += 1
    assert ran >= 8
    python = workplace / "example.py"
    (example,) = blocks("python")
    python.write_text(example, encoding="utf-8")
    done = subprocess.run([sys.executable, python], cwd=workplace, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("make ")])
def test_the_make_commands_of_the_readme_exist(command: str) -> None:
    done = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
