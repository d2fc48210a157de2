"""The wheel is what people get: installed alone into an empty place it speaks, without a network."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bytelm.engine import build

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted(path for path in (ROOT / "bytelm" / "models").glob("*/*") if path.is_file())
OFFLINE = """
import socket, sys

def refuse(*asked, **more):
    raise AssertionError(f"the network was asked for: {asked}")

socket.socket.connect = socket.getaddrinfo = refuse
import bytelm
print(bytelm.__file__, file=sys.stderr)
from bytelm.cli.__main__ import main
main()
"""


def run(*words: str | Path, cwd: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | variables
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, check=True
    )


def built_from_a_copy(folder: Path, *left_out: str, **variables: str) -> Path:
    """A wheel of this tree, built from a copy of it, so that the tree stays as it is."""
    source = folder / "source"
    without = shutil.ignore_patterns("__pycache__", *left_out)
    for name in ("bytelm", "cli", "data"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=without)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    offline = ("--quiet", "--no-index", "--no-deps")
    run("-m", "pip", "wheel", *offline, "--no-build-isolation", "--wheel-dir", folder, source, cwd=folder, **variables)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that this machine makes; an engine that is built in the tree and current is not compiled again."""
    return built_from_a_copy(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_carries_every_module_the_sample_and_every_shipped_model(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, place in (("bytelm", "bytelm"), ("cli", "bytelm/cli"), ("data", "bytelm/data")):
        assert {f"{place}/{path.name}" for path in (ROOT / folder).glob("*.py")} <= names
    assert {"bytelm/data/sample.tar.zst", "bytelm/py.typed"} <= names
    assert {str(path.relative_to(ROOT)) for path in SHIPPED} <= names
    for package in ("decoding", "engine"):
        assert {f"bytelm/{package}/{path.name}" for path in (ROOT / "bytelm" / package).glob("*.py")} <= names
    assert {f"bytelm/engine/{path.name}" for path in build.sources()} <= names


def test_the_wheel_carries_the_engine_and_its_platform_where_a_compiler_is(wheel: Path) -> None:
    try:
        build.find_compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    archive = zipfile.ZipFile(wheel)
    manifest = json.loads(archive.read("bytelm/engine/libbytelm_engine.json"))
    assert manifest["size"] == archive.getinfo("bytelm/engine/libbytelm_engine.so").file_size
    assert manifest["build"] == build.build_hash()
    machine = re.escape(platform.machine())
    assert re.search(rf"-py3-none-(manylinux_2_\d+|linux)_{machine}\.whl$", wheel.name)


def test_without_a_compiler_the_wheel_fits_everywhere_and_says_why_it_has_no_engine(tmp_path: Path) -> None:
    found = built_from_a_copy(tmp_path, "models", "libbytelm_engine.*", CXX="/nonexistent/c++")
    assert found.name.endswith("-py3-none-any.whl")
    archive = zipfile.ZipFile(found)
    assert "bytelm/engine/libbytelm_engine.so" not in archive.namelist()
    manifest = json.loads(archive.read("bytelm/engine/libbytelm_engine.json"))
    assert manifest["reason"] == "the C++ compiler /nonexistent/c++ ($CXX) was not found"
    assert "bytelm/engine/step.cpp" in archive.namelist()  # whoever gets a compiler later can build it


def test_an_installed_wheel_speaks_in_an_empty_folder_without_a_network(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    run("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site, wheel, cwd=tmp_path)
    empty.mkdir()
    program = tmp_path / "offline.py"
    program.write_text(OFFLINE)
    loaded = "from bytelm.engine.library import load_library; print(getattr(load_library(), 'path', None))"
    engine = site / "bytelm" / "engine" / build.LIBRARY_NAME
    own = {"PYTHONPATH": str(site), "HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    before = {path: path.read_bytes() for path in (site / "bytelm" / "models").rglob("*") if path.is_file()}

    said = [
        run(program, "generate", "nano", "def main(", "--max-bytes", "40", *more, cwd=empty, **own)
        for more in ((), ("--draft", "none"))
    ]
    assert said[0].stderr.splitlines()[0] == str(site / "bytelm" / "__init__.py")
    assert said[0].stdout == said[1].stdout != ""
    assert list(empty.iterdir()) == []
    assert run("-c", loaded, cwd=empty, **own).stdout.strip() == str(engine if engine.exists() else None)

    (tmp_path / "text.py").write_text("def main() -> None:\n    return\n")
    run(program, "eval", "nano", "--file", tmp_path / "text.py", cwd=empty, **own)
    assert [path.relative_to(empty) for path in empty.rglob("*") if path.is_file()] == [Path("eval/bpb-nano.json")]
    assert before == {path: path.read_bytes() for path in (site / "bytelm" / "models").rglob("*") if path.is_file()}
