"""Random decodings by the engine's decoder, compiled with sanitizers around a model that is a function of the ids."""

import os
import subprocess
from pathlib import Path
from typing import Final

import pytest

from bytelm.engine.build import FOLDER, BuildError, find_compiler

_SOURCE: Final = Path(__file__).parent / "decoder_fuzz.cpp"
_FLAGS: Final = ("-std=c++17", "-O1", "-g", "-fno-exceptions", "-fno-rtti", "-ffp-contract=off", "-DBL_ISA_NAME=plain")
_SANITIZERS: Final = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
_ROUNDS: Final = 60


def test_drafts_slots_blocks_and_kept_prefixes_change_no_id_of_random_decodings(tmp_path: Path) -> None:
    try:
        compiler = find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    program, empty = tmp_path / "decoder_fuzz", tmp_path / "empty.cpp"
    empty.write_text("int main() { return 0; }\n")
    # A test run under a sanitizer of its own would load its library before this program's.
    clean = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "ASAN_OPTIONS")}
    linked = subprocess.run([*compiler, *_SANITIZERS, str(empty), "-o", str(program)], check=False, capture_output=True)
    if linked.returncode:
        pytest.skip("the compiler has no sanitizers")
    command = [*compiler, *_FLAGS, *_SANITIZERS, "-I", str(FOLDER), str(_SOURCE), "-o", str(program)]
    subprocess.run(command, check=True, env=clean)
    done = subprocess.run([str(program), str(_ROUNDS)], check=False, capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stdout + done.stderr
