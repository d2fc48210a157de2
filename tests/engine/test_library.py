"""The engine's library: it is built where a compiler is, and only the one that belongs to this package is loaded.

Most tests take a library of three lines in the place of the engine: it is built in a second, and its one function
says which source it came from.
"""

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bytelm.engine import build, library
from bytelm.engine.build import BuildError, manifest_path
from bytelm.engine.library import Library, load_library, open_library, unavailable_reason
from bytelm.errors import ConfigError

SMALL = """
#include "export.h"
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void BL_EXPORT(loaded)() {
  if (const char* path = getenv("BYTELM_TEST_LOADED")) fclose(fopen(path, "w"));
}
BL_API int BL_EXPORT(answer)() { return 1; }
"""


def compiler_is_here() -> bool:
    try:
        build.find_compiler()
    except BuildError:
        return False
    return True


compiled = pytest.mark.skipif(not compiler_is_here(), reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def _nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process looks for its library once: each test does so anew, in an environment that names none."""
    for name in ("BYTELM_ENGINE", "BYTELM_ENGINE_LIBRARY"):
        monkeypatch.delenv(name, raising=False)
    library._loaded.cache_clear()
    yield
    library._loaded.cache_clear()


def sources_with(folder: Path, content: str = SMALL) -> Path:
    """A package whose engine is this source."""
    engine = folder / "engine"
    engine.mkdir(parents=True)
    shutil.copy(build.FOLDER.parent / "__init__.py", folder)
    for name in ("build.py", "dispatch.cpp", "export.h"):
        shutil.copy(build.FOLDER / name, engine)
    (engine / "variant.cpp").write_text(content)
    return engine


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole library with its manifest, of other sources than the package's; copied before it is changed."""
    if not compiler_is_here():
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("small")
    path = folder / "out" / build.LIBRARY_NAME
    assert build.build(path, folder=sources_with(folder / "package")).compiled
    return path


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change. The file is a new one: what is loaded is not looked up by its path."""
    shutil.copytree(small.parent, tmp_path / "out")
    return tmp_path / "out" / small.name


def change(path: Path, **values: object) -> None:
    manifest = json.loads(manifest_path(path).read_text())
    manifest_path(path).write_text(json.dumps(manifest | values))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_library_of_this_package_is_loaded_where_it_can_be_built() -> None:
    if not compiler_is_here() and not (build.FOLDER / build.LIBRARY_NAME).exists():
        pytest.skip("there is no C++ compiler")
    found = load_library()
    assert found is not None, unavailable_reason()
    assert unavailable_reason() == ""
    assert found.path == build.FOLDER / build.LIBRARY_NAME
    assert found.abi == build.ABI
    assert found.isa == found.runnable[0]
    assert set(found.runnable) <= set(found.isas) == set(build.VARIANTS.get(platform.machine(), {"plain": ()}))
    assert load_library() is found


def test_every_variant_has_the_same_functions_and_shares_no_code() -> None:
    nm = shutil.which("nm")
    found = load_library()
    if nm is None or found is None:
        pytest.skip("there is no nm, or no library")

    def names(*options: str) -> list[str]:
        ran = subprocess.run([nm, *options, str(found.path)], capture_output=True, text=True, check=True)
        return [line.split(maxsplit=2)[-1] for line in ran.stdout.splitlines()]

    exported = set(names("-D", "--defined-only", "--format=bsd"))
    own = {"bl_abi", "bl_build", "bl_isas", "bl_can_run", "bl_best"}
    by_isa = [{name for name in exported if name.startswith(f"bl_{isa}_")} for isa in found.isas]
    assert exported == own.union(*by_isa)
    functions = [{name.removeprefix(f"bl_{isa}_") for name in its} for isa, its in zip(found.isas, by_isa, strict=True)]
    assert functions[0]
    assert all(one == functions[0] for one in functions)
    # A weak symbol is one that the linker took from one variant for all of them.
    weak = subprocess.run([nm, "--defined-only", str(found.path)], capture_output=True, text=True, check=True)
    assert [line for line in weak.stdout.splitlines() if line.split()[1] in "WwVvu"] == []


@compiled
@pytest.mark.skipif(platform.machine() != "x86_64", reason="this machine has one instruction set")
def test_the_processor_can_run_what_the_system_says_it_can(small: Path) -> None:
    found = open_library(small, any_build=True)
    assert isinstance(found, Library)
    line = next(one for one in Path("/proc/cpuinfo").read_text().splitlines() if one.startswith("flags"))
    flags = set(line.partition(":")[2].split())
    avx2 = {"avx2", "fma"}
    avx512 = avx2 | {"f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"}
    needed = {"avx512vnni": avx512 | {"avx512_vnni"}, "avx512": avx512, "avx2": avx2, "plain": set()}
    assert found.runnable == tuple(isa for isa in needed if needed[isa] <= flags)


@compiled
def test_every_variant_computes_the_same_bits_for_all_families_of_heads_and_kinds_of_matrices(tmp_path: Path) -> None:
    found = load_library()
    assert found is not None, unavailable_reason()
    hashes = {}
    for isa in found.runnable:
        program, options = tmp_path / isa, ("-std=c++17", f"-DBL_ISA_NAME={isa}")
        source = Path(__file__).with_name("other_machine.cpp")
        command = [*build.find_compiler(), *options, str(source), str(found.path), "-o", str(program)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        hashes[isa] = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert hashes[found.isa].startswith("passes ")
    assert len(set(hashes.values())) == 1, hashes


def test_a_whole_library_is_loaded_and_its_variant_called(copy: Path) -> None:
    found = open_library(copy, any_build=True)
    assert isinstance(found, Library)
    for isa in found.runnable:
        assert found.variant(isa).isa == isa
        assert found.variant(isa).call("answer")() == 1
    with pytest.raises(AttributeError):
        found.call("question")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (flip_a_byte, "damaged or foreign"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "bytes, its manifest says"),
        (lambda path: path.write_bytes(b"\x7fELF" + bytes(path.stat().st_size - 4)), "damaged or foreign"),
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: manifest_path(path).unlink(), "is not there or damaged"),
        (lambda path: manifest_path(path).write_text("{"), "is not there or damaged"),
        (lambda path: manifest_path(path).write_text("[]"), "is not there or damaged"),
        (lambda path: change(path, isas=[]), "is not there or damaged"),
        (lambda path: change(path, build=None), "is not there or damaged"),
        (lambda path: change(path, sha256=None), "damaged or foreign"),
        (lambda path: change(path, abi=build.ABI + 1), f"is of interface {build.ABI + 1}"),
        (lambda path: change(path, version="0.0.1"), "is of bytelm 0.0.1"),
        (lambda path: change(path, machine="pdp11"), "is of machine pdp11"),
        (lambda path: change(path, build="another"), "replaced while it was being loaded"),
        (lambda path: shutil.rmtree(path.parent), "no library was built"),
    ],
)
def test_what_is_not_whole_or_not_of_this_package_is_refused_with_the_reason(
    copy: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], object], reason: str
) -> None:
    monkeypatch.setenv("BYTELM_ENGINE_LIBRARY", str(copy))
    spoil(copy)
    assert load_library() is None
    assert reason in unavailable_reason()
    assert "\n" not in unavailable_reason()


def test_a_library_of_other_sources_is_refused_but_not_to_a_developer_who_names_it(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "FOLDER", copy.parent)
    assert load_library() is None
    assert "built from other sources" in unavailable_reason()
    library._loaded.cache_clear()
    monkeypatch.setenv("BYTELM_ENGINE_LIBRARY", str(copy))
    found = load_library()
    assert found is not None
    assert found.path == copy


def test_nothing_of_a_library_runs_before_its_manifest_has_vouched_for_it(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "loaded"
    monkeypatch.setenv("BYTELM_TEST_LOADED", str(mark))
    whole = manifest_path(copy).read_bytes()
    change(copy, sha256="0" * 64)
    assert isinstance(open_library(copy, any_build=True), str)
    assert not mark.exists()
    manifest_path(copy).write_bytes(whole)
    assert isinstance(open_library(copy, any_build=True), Library)
    assert mark.exists()


def test_off_is_a_reason(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYTELM_ENGINE_LIBRARY", str(copy))
    monkeypatch.setenv("BYTELM_ENGINE", "off")
    assert load_library() is None
    assert unavailable_reason() == "BYTELM_ENGINE=off turns it off"


def test_an_instruction_set_is_chosen_by_its_name(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYTELM_ENGINE_LIBRARY", str(copy))
    whole = open_library(copy, any_build=True)
    assert isinstance(whole, Library)
    for isa in whole.isas:
        library._loaded.cache_clear()
        monkeypatch.setenv("BYTELM_ENGINE", isa)
        if isa in whole.runnable:
            found = load_library()
            assert found is not None
            assert found.isa == isa
        else:
            with pytest.raises(ConfigError, match=f"this processor lacks the instruction set '{isa}'"):
                load_library()


def test_an_instruction_set_that_is_unknown_or_not_to_be_had_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BYTELM_ENGINE_LIBRARY", str(copy))
    monkeypatch.setenv("BYTELM_ENGINE", "mmx")
    with pytest.raises(ConfigError, match=r"mmx is unknown; it is auto, off, .*avx2, plain"):
        load_library()
    other = next(name for machine, names in build.VARIANTS.items() for name in names if machine != platform.machine())
    monkeypatch.setenv("BYTELM_ENGINE", other)
    if other not in build.VARIANTS.get(platform.machine(), ()):
        with pytest.raises(ConfigError, match=f"has no instruction set '{other}'"):
            load_library()
    found = open_library(copy, any_build=True)
    assert isinstance(found, Library)
    with pytest.raises(ConfigError, match="this processor lacks the instruction set"):
        dataclasses.replace(found, runnable=("none",)).variant(found.isas[0])
    flip_a_byte(copy)
    monkeypatch.setenv("BYTELM_ENGINE", found.isa)
    with pytest.raises(ConfigError, match=r"cannot be honoured: .* damaged or foreign"):
        load_library()


@compiled
def test_nothing_is_compiled_when_nothing_changed(tmp_path: Path) -> None:
    folder, path = sources_with(tmp_path / "package"), tmp_path / "out" / "a.so"
    assert build.build(path, folder=folder, isas=["plain"]).compiled
    before = path.stat()
    again = build.build(path, folder=folder, isas=["plain"])
    assert not again.compiled
    assert again.manifest == build.read_manifest(path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    spare = tmp_path / "other" / "a.so"
    assert not build.build(spare, folder=folder, isas=["plain"], spare=path).compiled
    assert spare.read_bytes() == path.read_bytes()
    flip_a_byte(spare)
    assert build.build(spare, folder=folder, isas=["plain"]).compiled

    (folder / "variant.cpp").write_text(SMALL.replace("return 1", "return 2"))
    assert build.build(path, folder=folder, isas=["plain"]).compiled


@compiled
def test_a_library_is_replaced_under_those_who_have_it_loaded(tmp_path: Path) -> None:
    folder, path = sources_with(tmp_path / "package"), tmp_path / "out" / "a.so"
    build.build(path, folder=folder, isas=["plain"])
    found = open_library(path, any_build=True)
    assert isinstance(found, Library)
    (folder / "variant.cpp").write_text(SMALL.replace("return 1", "return 2"))
    assert build.build(path, folder=folder, isas=["plain"]).compiled
    assert sorted(one.name for one in path.parent.iterdir()) == ["a.json", "a.so"]
    assert found.call("answer")() == 1
    # The system knows libraries by their path: this process keeps the old one, and is told so.
    assert "replaced while it was being loaded" in str(open_library(path, any_build=True))
    ask = (
        "import sys, pathlib; from bytelm.engine.library import open_library; "
        "print(open_library(pathlib.Path(sys.argv[1]), any_build=True).call('answer')())"
    )
    ran = subprocess.run([sys.executable, "-c", ask, str(path)], capture_output=True, text=True, check=True)
    assert ran.stdout == "2\n"


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"CXX": ""}, "no C++ compiler was found"),
        ({"CXX": "/nonexistent/c++ -O2"}, "/nonexistent/c++ ($CXX) was not found"),
        ({"CXX": "false"}, "does not say its version"),
    ],
)
def test_without_a_compiler_the_build_says_why_and_so_does_who_looks_for_the_library(
    tmp_path: Path, variables: dict[str, str], reason: str
) -> None:
    path = tmp_path / "out" / "a.so"
    found = shutil.which("false")
    assert found is not None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "false").symlink_to(found)

    def run(*more: str) -> "subprocess.CompletedProcess[str]":
        words = [sys.executable, "-m", "bytelm.engine.build", "--out", str(path), *more]
        environment = os.environ | {"PATH": str(tmp_path / "bin")} | variables
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)

    ran = run()
    assert ran.returncode == 1
    assert reason in ran.stderr
    assert not path.parent.exists()
    ran = run("--optional")
    assert ran.returncode == 0
    assert ran.stderr.splitlines()[-1] == "torch decodes instead"
    assert reason in ran.stderr
    assert not path.exists()
    assert str(open_library(path)).startswith("no library was built: ")
    assert reason in str(open_library(path))


@compiled
def test_without_a_compiler_a_library_that_is_current_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, path = sources_with(tmp_path / "package"), tmp_path / "out" / "a.so"
    build.build(path, folder=folder, isas=["plain"])
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    assert not build.build(path, folder=folder).compiled
    (folder / "variant.cpp").write_text(SMALL.replace("return 1", "return 2"))
    with pytest.raises(BuildError, match="was not found"):
        build.build(path, folder=folder)


@compiled
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (SMALL + "int broken() { return }\n", r"fails at variant.cpp, plain: .*error"),
        (SMALL + "void absent(); BL_API void BL_EXPORT(calls)() { absent(); }\n", r"fails to link"),
        (SMALL + "BL_API char* BL_EXPORT(made)() { return new char[7]; }\n", r"needs libstdc\+\+|needs libc\+\+"),
    ],
)
def test_sources_that_do_not_make_a_library_leave_the_old_one_in_its_place(
    small: Path, tmp_path: Path, content: str, reason: str
) -> None:
    path = tmp_path / "out" / "a.so"
    path.parent.mkdir()
    for source in (small, manifest_path(small)):
        shutil.copy(source, path.with_suffix(source.suffix))
    with pytest.raises(BuildError, match=reason) as caught:
        build.build(path, folder=sources_with(tmp_path / "package", content), isas=["plain"])
    assert "\n" not in str(caught.value)
    assert isinstance(open_library(path, any_build=True), Library)
    assert len(list(path.parent.iterdir())) == 2


@compiled
def test_an_instruction_set_that_the_compiler_s_machine_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"has no instruction set mmx; it has"):
        build.build(tmp_path / "a.so", isas=["plain", "mmx"])


@pytest.mark.parametrize(
    ("glibc", "tag"),
    [(34, "manylinux_2_34_x86_64"), (2, "manylinux_2_17_x86_64"), (None, "linux_x86_64")],
)
def test_a_wheel_s_platform_is_the_oldest_c_library_that_has_every_symbol(glibc: int | None, tag: str) -> None:
    assert build.platform_tag({"machine": "x86_64", "glibc": glibc}) == tag


@pytest.mark.slow
@compiled
def test_the_compiler_warns_of_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build.build(tmp_path / "a.so", isas=["plain"])
    assert capfd.readouterr().err == ""
