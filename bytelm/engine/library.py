"""Find the compiled engine, make sure that it is the one of this package, and load it.

A library runs inside the process, so nothing of it is called before its manifest, which ``bytelm.engine.build`` wrote
beside it, has vouched for it: the version, the interface and the sources of this package, this processor architecture,
the size and the SHA-256 of the file. One that fails is not loaded, and the reason is kept for ``bytelm doctor`` and
``--stats``; torch then decodes.

Two environment variables, read here alone:

- ``BYTELM_ENGINE``: ``auto`` (the default: the best instruction set of this processor), ``off`` (torch decodes), or
  the name of an instruction set.
- ``BYTELM_ENGINE_LIBRARY``: for developers, the path of another library, its manifest beside it; it may come from
  other sources, as a sanitized or an older one does.
"""

import ctypes
import functools
import hashlib
import os
import platform
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import bytelm
from bytelm.errors import ConfigError

REMEDY: Final = "python -m bytelm.engine.build makes a new one"
"""Stands at the end of every reason that it helps against."""


@dataclass(frozen=True)
class Library:
    """A loaded library, seen through one of its variants.

    Attributes:
        path: Of the file.
        isa: Instruction set of this variant.
        isas: Those of all variants in the library, best first.
        runnable: Those that this processor has, best first.
        compiler: Name and version of what compiled it.
        abi: Version of its functions and structs.
        handle: The library itself, for ctypes.
    """

    path: Path
    isa: str
    isas: tuple[str, ...]
    runnable: tuple[str, ...]
    compiler: str
    abi: int
    handle: ctypes.CDLL = field(repr=False, compare=False)

    def call(self, name: str) -> Any:
        """The variant's exported function ``bl_<isa>_<name>``, whose types its caller declares.

        Raises:
            AttributeError: The library has no such function.
        """
        return getattr(self.handle, f"bl_{self.isa}_{name}")

    def variant(self, isa: str) -> "Library":
        """The same library through another variant.

        Raises:
            ConfigError: The library does not have it, or this processor cannot run it.
        """
        if isa not in self.isas:
            raise ConfigError(f"the engine has no instruction set {isa!r}; it has {', '.join(self.isas)}")
        if isa not in self.runnable:
            raise ConfigError(f"this processor lacks the instruction set {isa!r}; it has {', '.join(self.runnable)}")
        return replace(self, isa=isa)


def load_library() -> Library | None:
    """The engine's library, loaded once in a process; None where there is none to use.

    Raises:
        ConfigError: BYTELM_ENGINE asks for an instruction set that is unknown, or that this processor or the library
            lacks, or for one although there is no library to use.
    """
    found = _loaded()
    return found if isinstance(found, Library) else None


def unavailable_reason() -> str:
    """Why there is no library to use; empty if there is one.

    Raises:
        ConfigError: As ``load_library``.
    """
    found = _loaded()
    return "" if isinstance(found, Library) else found


@functools.cache
def _loaded() -> Library | str:
    """The library, or the reason why there is none; both stay what they are as long as the process lives."""
    # Not at the top: a module that is imported cannot be run by ``python -m`` without a warning.
    from bytelm.engine.build import FOLDER, LIBRARY_NAME, VARIANTS

    names = list(dict.fromkeys(name for variants in VARIANTS.values() for name in variants))
    asked = os.environ.get("BYTELM_ENGINE", "").strip() or "auto"
    if asked not in ("auto", "off", *names):
        raise ConfigError(f"BYTELM_ENGINE={asked} is unknown; it is auto, off, {', '.join(names)}")
    if asked == "off":
        return "BYTELM_ENGINE=off turns it off"
    own = os.environ.get("BYTELM_ENGINE_LIBRARY")
    found = open_library(Path(own).absolute(), any_build=True) if own else open_library(FOLDER / LIBRARY_NAME)
    if asked == "auto":
        return found
    if not isinstance(found, Library):
        raise ConfigError(f"BYTELM_ENGINE={asked} cannot be honoured: {found}")
    return found.variant(asked)


def open_library(path: Path, *, any_build: bool = False) -> Library | str:
    """Check and load the library in a place, whatever the environment says.

    Args:
        path: Of the library; its manifest lies beside it.
        any_build: Whether it may come from other sources than those of this package.

    Returns:
        The library, through its best variant for this processor, or the reason why it must not be used.
    """
    from bytelm.engine.build import ABI, read_manifest

    manifest = read_manifest(path)
    reason = _fault(path, manifest, any_build)
    if reason is not None:
        return reason
    assert manifest is not None
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        return f"{path} cannot be loaded: {error}"
    for name in ("bl_build", "bl_best"):
        getattr(handle, name).restype = ctypes.c_char_p
    handle.bl_can_run.argtypes = [ctypes.c_char_p]
    if handle.bl_abi() != ABI or handle.bl_build().decode() != manifest["build"]:
        return f"{path} was replaced while it was being loaded; start again"
    isas = tuple(manifest["isas"])
    best = handle.bl_best().decode()
    if not best:
        return f"{path} has no variant for this processor: it has {', '.join(isas)}; {REMEDY}"
    return Library(
        path=path,
        isa=best,
        isas=isas,
        runnable=tuple(name for name in isas if handle.bl_can_run(name.encode())),
        compiler=manifest["compiler"],
        abi=ABI,
        handle=handle,
    )


def _fault(path: Path, manifest: dict[str, Any] | None, any_build: bool) -> str | None:
    """Why the library in this place must not be loaded; None if it may."""
    from bytelm.engine.build import ABI, build_hash, manifest_path

    beside = manifest_path(path)
    if manifest is None:
        if not path.exists():
            return f"no library was built: {path} is not there; {REMEDY}"
        return f"{beside}, the manifest of {path.name}, is not there or damaged; {REMEDY}"
    if "reason" in manifest:
        return f"no library was built: {manifest['reason']}; {REMEDY}"
    for key, wanted, what in (
        ("version", bytelm.__version__, "bytelm"),
        ("abi", ABI, "interface"),
        ("machine", platform.machine(), "machine"),
    ):
        if manifest.get(key) != wanted:
            return f"{path} is of {what} {manifest.get(key)}, this is {what} {wanted}; {REMEDY}"
    build, isas, compiler = manifest.get("build"), manifest.get("isas"), manifest.get("compiler")
    if not (isinstance(build, str) and isinstance(isas, list) and isas and isinstance(compiler, str)):
        return f"{beside}, the manifest of {path.name}, is not there or damaged; {REMEDY}"
    try:
        if not any_build and build != build_hash():
            return f"{path} was built from other sources than those beside it; {REMEDY}"
        content = path.read_bytes()
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}; {REMEDY}"
    if len(content) != manifest.get("size"):
        return f"{path} has {len(content)} bytes, its manifest says {manifest.get('size')}; {REMEDY}"
    if hashlib.sha256(content).hexdigest() != manifest.get("sha256"):
        return f"{path} is damaged or foreign: its checksum is not its manifest's; {REMEDY}"
    return None
