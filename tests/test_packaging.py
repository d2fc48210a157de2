"""The package is what the tree is: names, folders, public API, and nothing importable by accident."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import bytelm
from bytelm.engine import build

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_packages_equal_the_tree() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    folders = {"bytelm": "bytelm", **setuptools["package-dir"]}
    in_tree = {
        str(init.parent.relative_to(ROOT))
        for top in ("bytelm", "cli", "data")
        for init in (ROOT / top).rglob("__init__.py")
        if not any(parent.is_symlink() for parent in init.parents)
    }
    assert {folders.get(package, package.replace(".", "/")) for package in setuptools["packages"]} == in_tree


@pytest.mark.parametrize("name", ["cli", "data"])
def test_the_symlinks_say_what_the_package_folders_say(name: str) -> None:
    link = ROOT / "bytelm" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name
    module = importlib.import_module(f"bytelm.{name}")
    assert Path(str(module.__file__)).resolve().parent == ROOT / name


@pytest.mark.parametrize("name", ["data", "cli", "tests"])
def test_top_folders_are_not_importable_by_their_bare_name(name: str, tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-I", "-c", f"import importlib.util as u; print(u.find_spec({name!r}))"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "None"


def test_public_names_resolve() -> None:
    for name in bytelm.__all__:
        assert getattr(bytelm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = bytelm.nothing


def test_the_version_has_one_value() -> None:
    assert PROJECT["project"]["version"] == bytelm.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{bytelm.__version__}]" in changelog


def test_constraints_pin_every_direct_dependency() -> None:
    project = PROJECT["project"]
    direct = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {re.split(r"[<>=!~;\[ ]", requirement)[0] for requirement in direct}
    pins = {
        line.partition("==")[0]
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    }
    assert names == pins


def test_every_dependency_has_a_sentence_why() -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    start = lines.index("dependencies = [")
    block = lines[start + 1 : lines.index("]", start)]
    for before, line in zip(["", *block], block, strict=False):
        if not line.strip().startswith("#"):
            assert before.strip().startswith("#"), f"{line.strip()} has no reason"


def test_the_engine_ships_its_sources() -> None:
    assert PROJECT["tool"]["setuptools"]["package-data"]["bytelm.engine"] == ["*.h", "*.cpp"]
    assert {path.suffix for path in build.sources()} == {".h", ".cpp"}


def test_the_version_that_the_build_reads_is_the_package_s() -> None:
    assert build.package_version() == bytelm.__version__


def test_shipped_code_carries_a_py_typed_marker() -> None:
    assert (ROOT / "bytelm" / "py.typed").exists()
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"]["bytelm"]
