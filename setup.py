"""Builds the compiled engine with the package, where a C++ compiler is; everything else stands in pyproject.toml.

The engine is a plain shared library, no extension module of one Python version: a wheel that has it is tagged with the
platform alone, a wheel without it fits everywhere and decodes through torch.
"""

import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any, ClassVar

from setuptools import Command, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ENGINE = Path("bytelm/engine")


def module_at(path: Path) -> Any:
    """A module by its path: the package around it cannot be imported before what it needs is installed."""
    spec = importlib.util.spec_from_file_location("bytelm_engine_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


engine = module_at(ENGINE / "build.py")


class build_engine(Command):
    """Compile the engine into the built package, or into the tree where the installation is editable."""

    description = "compile the decoding engine, if there is a C++ compiler"
    user_options: ClassVar[list[tuple[str, str, str]] | list[tuple[str, str | None, str]]] = []
    editable_mode = False
    build_lib = ""

    def initialize_options(self) -> None:
        self.build_lib = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        library, in_tree = self.library(), ENGINE / engine.LIBRARY_NAME
        try:
            built = engine.build(library, spare=None if self.editable_mode else in_tree)
        except engine.BuildError as error:
            engine.note_failure(library, str(error))
            self.announce(f"bytelm's engine was not built, torch decodes instead: {error}", logging.WARNING)
        else:
            names = ", ".join(built.manifest["isas"])
            self.announce(f"bytelm's engine: {names}, {built.manifest['compiler']}", logging.INFO)

    def library(self) -> Path:
        """Place of the library that this command makes."""
        return (ENGINE if self.editable_mode else Path(str(self.build_lib)) / ENGINE) / engine.LIBRARY_NAME

    def get_source_files(self) -> list[str]:
        return [str(path) for path in (*engine.sources(ENGINE), ENGINE / "build.py")]

    def get_outputs(self) -> list[str]:
        library = self.library()
        return [] if self.editable_mode else [str(library), str(engine.manifest_path(library))]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class platform_wheel(bdist_wheel):
    """A wheel whose platform is the one of the library in it."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, anywhere = super().get_tag()
        command: Any = self.get_finalized_command("build_engine")
        manifest = engine.read_manifest(command.library())
        if command.editable_mode or manifest is None or "reason" in manifest:
            return python, abi, anywhere
        return python, abi, engine.platform_tag(manifest)


build.sub_commands.append(("build_engine", None))
setup(cmdclass={"build_engine": build_engine, "bdist_wheel": platform_wheel})
