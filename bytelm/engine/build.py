"""Compile the engine: one shared library that holds a variant for each instruction set.

``pip install`` does it through ``setup.py``, which loads this file by its path: it needs nothing but the standard
library. By hand::

    python -m bytelm.engine.build

The library calls no Python and needs no more than the C library and its threads, so one file serves every Python
version, and ctypes loads it. Beside it lies its manifest, a JSON object from which the loader learns whether the file
is whole and belongs to this package. Where no library can be built, the manifest holds the reason, and torch decodes.

Both files are written beside their place and renamed: a process that has the old library loaded keeps it.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).resolve().parent
LIBRARY_NAME: Final = "libbytelm_engine.so"
"""Begins with ``lib``, so that no ``import`` can take it for a module."""

ABI: Final = 1
"""Version of the exported functions and of the structs that they take; raised with every change of them."""

_EVERY: Final = (
    "-std=c++17",
    "-fPIC",
    "-pthread",
    # Equal bits: no operation may be fused, reordered or replaced but where the source says so.
    "-ffp-contract=off",
    "-fno-math-errno",
    # Nothing of the C++ runtime library: it would have to be there, and be new enough, wherever the wheel goes.
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    # Only what is declared for Python is exported; calls inside need no table.
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    # gcc 12 warns of its own AVX-512 headers; clang does not know the second name.
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
    "-Wno-unknown-warning-option",
)
_FAST: Final = ("-O3",)
_SANITIZED: Final = (
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
)
_AVX512: Final = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c")

VARIANTS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "x86_64": {
        "avx512vnni": (*_AVX512, "-mavx512vnni"),
        "avx512": _AVX512,
        "avx2": ("-mavx2", "-mfma"),
        "plain": (),
    },
    "aarch64": {"neon": ()},
}
"""For each processor architecture the variants, best first, with the compiler's flags."""

_PLAIN_ALONE: Final[Mapping[str, tuple[str, ...]]] = {"plain": ()}
"""Of architectures that the engine has no vector code for."""

_AT_ONCE: Final = 2
"""Compilers that run side by side: each takes some hundred MB."""


@dataclass(frozen=True)
class Built:
    """A library in its place.

    Attributes:
        manifest: What lies beside it.
        compiled: False if the library was current, or a spare one was copied.
    """

    manifest: dict[str, Any]
    compiled: bool


class BuildError(Exception):
    """The library cannot be built here; the message says why, in one line."""


def sources(folder: Path = FOLDER) -> list[Path]:
    """The engine's C++ files, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.suffix in (".cpp", ".h"))


def package_version(folder: Path = FOLDER) -> str:
    """Version of the package around the engine, read without importing it."""
    found = re.search(r'^__version__ = "(.+)"$', (folder.parent / "__init__.py").read_text(encoding="utf-8"), re.M)
    if found is None:
        raise BuildError(f"{folder.parent / '__init__.py'} has no __version__")
    return found[1]


def build_hash(folder: Path = FOLDER) -> str:
    """Hash of everything that the library's code depends on, but for the compiler: sources, flags and version."""
    digest = hashlib.sha256(package_version(folder).encode())
    for path in (*sources(folder), folder / "build.py"):
        content = path.read_bytes()
        digest.update(f"\n{path.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:32]


def manifest_path(library: Path) -> Path:
    """Where the manifest of a library lies."""
    return library.with_suffix(".json")


def read_manifest(library: Path) -> dict[str, Any] | None:
    """The manifest beside a library; None where there is none, or it is no JSON object."""
    try:
        found = json.loads(manifest_path(library).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def is_current(library: Path, manifest: dict[str, Any], wanted: Mapping[str, object]) -> bool:
    """Whether a library lies there, whole, whose manifest has the wanted values."""
    if any(manifest.get(key) != value for key, value in wanted.items()):
        return False
    try:
        return hashlib.sha256(library.read_bytes()).hexdigest() == manifest.get("sha256")
    except OSError:
        return False


def find_compiler(asked: str | None = None) -> list[str]:
    """The C++ compiler's command.

    Args:
        asked: A command; None takes ``$CXX``, else the first of ``c++``, ``g++`` and ``clang++`` that is there.

    Raises:
        BuildError: There is none.
    """
    named = asked or os.environ.get("CXX", "").strip()
    if named:
        command = shlex.split(named)
        if shutil.which(command[0]) is None:
            where = "" if asked else " ($CXX)"
            raise BuildError(f"the C++ compiler {command[0]}{where} was not found")
        return command
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name) is not None:
            return [name]
    raise BuildError("no C++ compiler was found ($CXX, c++, g++, clang++)")


def compiler_for(machine: str) -> list[str]:
    """The command of the cross compiler in the package ziglang, for Linux with glibc 2.17 or newer."""
    return [sys.executable, "-m", "ziglang", "c++", "-target", f"{machine}-linux-gnu.2.17"]


def build(
    library: Path = FOLDER / LIBRARY_NAME,
    *,
    compiler: Sequence[str] | None = None,
    isas: Sequence[str] | None = None,
    sanitize: bool = False,
    folder: Path = FOLDER,
    spare: Path | None = None,
) -> Built:
    """Make sure that a library of the present sources lies in its place, with its manifest.

    Args:
        library: Its place; the folder is made.
        compiler: The compiler's command; None looks for one. It says itself what machine it builds for.
        isas: Names of variants; None takes all of the machine.
        sanitize: Whether the code watches its memory accesses and arithmetic (slow; for tests).
        folder: Where the sources are.
        spare: Another library, which is copied if it is what would be built.

    Raises:
        BuildError: No compiler, one that fails, or a variant that the machine does not have.
    """
    facts: dict[str, Any] = {
        "version": package_version(folder),
        "abi": ABI,
        "build": build_hash(folder),
        "machine": platform.machine(),
        "sanitized": sanitize,
    }
    try:
        command = list(compiler) if compiler is not None else find_compiler()
        version, machine = _identify(command)
    except BuildError:  # where none was asked for, none is needed to keep a library
        present = _present(library, spare, facts) if compiler is None else None
        if present is None:
            raise
        return present
    known = VARIANTS.get(machine, _PLAIN_ALONE)
    unknown = [name for name in isas or () if name not in known]
    if unknown:
        raise BuildError(f"{machine} has no instruction set {', '.join(unknown)}; it has {', '.join(known)}")
    names = [name for name in known if isas is None or name in isas]
    facts |= {"machine": machine, "isas": names, "compiler": version}
    if (present := _present(library, spare, facts)) is not None:
        return present
    content = _compiled(command, folder, facts, {name: known[name] for name in names}, sanitize)
    if not sanitize and (needed := re.search(rb"lib(stdc\+\+|gcc_s|c\+\+)\.so[.\d]*", content)):
        raise BuildError(f"the library needs {needed[0].decode()}, which is not on every machine")
    glibc = max((int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", content)), default=None)
    facts |= {"glibc": glibc, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    _make_folder(library.parent)
    _place(content, library)
    _place((json.dumps(facts, indent=1) + "\n").encode(), manifest_path(library))
    return Built(facts, compiled=True)


def note_failure(library: Path, reason: str) -> None:
    """Leave no library, and a manifest that holds the reason, for those who ask later why torch decodes."""
    _make_folder(library.parent)
    with _written_to(library):
        library.unlink(missing_ok=True)
    _place(
        (json.dumps({"version": package_version(), "reason": reason}, indent=1) + "\n").encode(), manifest_path(library)
    )


def platform_tag(manifest: Mapping[str, Any]) -> str:
    """Platform of a wheel that carries the library, e.g. ``manylinux_2_34_x86_64``.

    Source: PEP 600. The number is the newest glibc that a symbol of the library asks for, and at least 2.17.
    """
    machine, glibc = manifest["machine"], manifest["glibc"]
    return f"linux_{machine}" if glibc is None else f"manylinux_2_{max(glibc, 17)}_{machine}"


def _present(library: Path, spare: Path | None, wanted: Mapping[str, object]) -> Built | None:
    """The library in its place, or the spare one copied to it, if its manifest has the wanted values."""
    for place in (library, spare):
        manifest = None if place is None else read_manifest(place)
        if place is not None and manifest is not None and is_current(place, manifest, wanted):
            if place != library:
                _make_folder(library.parent)
                _place(place.read_bytes(), library)
                _place(manifest_path(place).read_bytes(), manifest_path(library))
            return Built(manifest, compiled=False)
    return None


def _identify(command: Sequence[str]) -> tuple[str, str]:
    """Version of the compiler, and the architecture that it compiles for."""
    version = _run([*command, "--version"], "does not say its version").partition("\n")[0].strip()
    macros = set(re.findall(r"^#define (\w+)", _run([*command, "-dM", "-E", "-x", "c++", os.devnull], "fails"), re.M))
    if "__linux__" not in macros:
        raise BuildError("the engine is built for Linux only so far")
    if {"__x86_64__", "__LP64__"} <= macros:
        return version, "x86_64"
    if {"__aarch64__", "__AARCH64EL__"} <= macros:
        return version, "aarch64"
    return version, platform.machine()


def _compiled(
    command: Sequence[str],
    folder: Path,
    facts: Mapping[str, Any],
    variants: Mapping[str, tuple[str, ...]],
    sanitize: bool,
) -> bytes:
    """Bytes of the library."""
    # Here and in main, for whoever only loads a library imports this module, too.
    import tempfile
    from concurrent.futures import ThreadPoolExecutor

    flags = [*_EVERY, *(_SANITIZED if sanitize else _FAST)]
    names = list(variants)
    about = (
        f"-DBL_ABI={facts['abi']}",
        f'-DBL_BUILD="{facts["build"]}"',
        f'-DBL_ISAS="{",".join(names)}"',
        "-DBL_ISA_LIST=" + ",".join(f'"{name}"' for name in names),
    )
    with tempfile.TemporaryDirectory(prefix="bytelm-engine-") as place:

        def unit(name: str, source: str, *more: str) -> Path:
            made = Path(place) / f"{name}.o"
            _run([*command, *flags, *more, "-c", str(folder / source), "-o", str(made)], f"fails at {source}, {name}")
            return made

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            started = [pool.submit(unit, "dispatch", "dispatch.cpp", *about)]
            started += [
                pool.submit(unit, name, "variant.cpp", f"-DBL_ISA_NAME={name}", *more)
                for name, more in variants.items()
            ]
            units = [str(future.result()) for future in started]
        linked = Path(place) / LIBRARY_NAME
        link = ["-shared", "-Wl,--as-needed", *([] if sanitize else ["-Wl,-z,defs", "-Wl,--strip-debug"])]
        _run([*command, *flags, *link, *units, "-o", str(linked)], "fails to link")
        return linked.read_bytes()


def _run(command: Sequence[str], what: str) -> str:
    """Output of a compiler; what it complains of goes to stderr."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise BuildError(f"the C++ compiler {command[0]} cannot be run: {error.strerror}") from error
    if ran.stderr:
        print(ran.stderr, end="", file=sys.stderr, flush=True)
    if ran.returncode != 0:
        first = next((line for line in ran.stderr.splitlines() if "error" in line), f"exit status {ran.returncode}")
        raise BuildError(f"the C++ compiler {command[0]} {what}: {first.strip()}")
    return ran.stdout


@contextlib.contextmanager
def _written_to(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BuildError(f"{place} cannot be written: {error.strerror}") from error


def _make_folder(folder: Path) -> None:
    with _written_to(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _place(content: bytes, path: Path) -> None:
    """Write a file beside its place, then rename it: whoever reads or has loaded the old one keeps it whole."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with _written_to(path):
        try:
            beside.write_bytes(content)
            beside.chmod(0o644)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def main(words: Sequence[str] | None = None) -> int:
    """The command line; 0 where a library of the present sources lies in its place afterwards."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m bytelm.engine.build", description="Compile bytelm's engine.")
    parser.add_argument("--out", type=Path, default=FOLDER / LIBRARY_NAME, help="where the library goes")
    parser.add_argument("--isa", help="names of instruction sets with commas between them; default: all")
    parser.add_argument("--sanitize", action="store_true", help="check memory accesses and arithmetic at run time")
    parser.add_argument("--compiler", help="the compiler's command; default: $CXX, c++, g++ or clang++")
    parser.add_argument("--target", choices=sorted(VARIANTS), help="cross-build with the ziglang package")
    parser.add_argument(
        "--optional", action="store_true", help="where it cannot be built, note the reason and end with 0"
    )
    asked = parser.parse_args(words)
    if asked.compiler and asked.target:
        parser.error("--compiler and --target exclude each other")
    try:
        compiler = find_compiler(asked.compiler) if asked.compiler else None
        compiler = compiler_for(asked.target) if asked.target else compiler
        isas = asked.isa.split(",") if asked.isa else None
        built = build(asked.out, compiler=compiler, isas=isas, sanitize=asked.sanitize)
    except BuildError as error:
        print(f"the engine was not built: {error}", file=sys.stderr)
        if not asked.optional:
            return 1
        note_failure(asked.out, str(error))
        print("torch decodes instead", file=sys.stderr)
        return 0
    print(f"{asked.out} {'was built' if built.compiled else 'is current'}: {', '.join(built.manifest['isas'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
