"""Compiled layers: in training each layer is one program, made at its first use; everything else runs as it is.

A layer is compiled and not the model: all layers of a kind are the same program, so that little is to be compiled, and
layers stay the units that ranks share. Attention itself stays outside, as a kernel of its own. Validation and decoding
come in many lengths, each of which would be a program: they run ``eagerly``.
"""

import contextlib
import importlib.util
import shutil
from typing import Final

import torch

from bytelm.config import CompileSetting
from bytelm.errors import ConfigError
from bytelm.layers import Block
from bytelm.model import ByteLM
from bytelm.uncompiled import keep_out_of_programs

_COMPILERS: Final = ("c++", "g++", "clang++")


def choose_compile(setting: CompileSetting, device: torch.device) -> bool:
    """Whether layers are compiled on a device: ``auto`` does so on CUDA, where Triton is installed.

    Raises:
        ConfigError: ``on``, and what compiles is missing.
    """
    triton = importlib.util.find_spec("triton") is not None
    if setting == "auto":
        return device.type == "cuda" and triton
    if setting == "on":
        missing = None
        if device.type == "cuda" and not triton:
            missing = "Triton, which is not installed: pip install triton"
        elif device.type == "cpu" and not any(map(shutil.which, _COMPILERS)):
            missing = f"a C++ compiler; none of {', '.join(_COMPILERS)} is there: install one"
        if missing:
            raise ConfigError(f"train.compile = on needs {missing}; or set train.compile = off")
    return setting == "on"


def compile_layers(model: ByteLM, *, backend: str = "inductor") -> None:
    """Let each transformer layer of trunk and heads be compiled when it is first used.

    Args:
        model: Changed in place; its parameters and their names stay.
        backend: Of ``torch.compile``.
    """
    keep_out_of_programs()
    for module in model.modules():
        if isinstance(module, Block):
            module.compile(backend=backend)


def eagerly() -> contextlib.AbstractContextManager[None]:
    """Inside, nothing is compiled and nothing that was compiled is used."""
    return torch.compiler.set_stance("force_eager")
