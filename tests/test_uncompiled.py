"""What is kept out of compiled programs is kept out, and who compiles nothing does not pay for torch's compiler."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bytelm.checkpoint import write_model
from bytelm.config import RunConfig
from bytelm.model import ByteLM
from bytelm.uncompiled import Uncompiled
from bytelm.vocab import BYTES

SMALL = ["model.d_model=16", "model.layers=1", "model.attention_heads=2", "model.kv_heads=1", "model.d_ff=16"]


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_a_function_that_is_kept_out_is_called_by_the_program_around_it() -> None:
    traced: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        traced.extend(node.target for node in graph.graph.nodes if node.op in ("call_function", "call_method"))
        return graph.forward

    @Uncompiled
    def doubled(values: torch.Tensor) -> torch.Tensor:
        return torch.mul(values, 2)

    def around(values: torch.Tensor) -> torch.Tensor:
        return torch.sub(doubled(torch.add(values, 1)), 3)

    values = torch.arange(4.0)
    assert torch.equal(around(values), values * 2 - 1)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(around, backend=backend)(values), values * 2 - 1)
    assert torch.mul in traced

    traced.clear()
    doubled.keep_out()
    torch._dynamo.reset()
    assert torch.equal(torch.compile(around, backend=backend)(values), values * 2 - 1)
    assert traced == [torch.add, torch.sub]
    torch._dynamo.reset()


def test_loading_generating_and_scoring_import_no_compiler(tmp_path: Path) -> None:
    config = RunConfig.build("tiny", SMALL)
    weights = ByteLM(config.model, config.heads).state_dict()
    write_model(tmp_path, weights, config, step=1, corpus="corpus", fingerprint="f00d", vocabulary=BYTES)
    code = (
        "import sys, bytelm; model = bytelm.load(sys.argv[1]); model.generate('a', max_bytes=20); "
        "model.score('', 'abc'); "
        "print(*sorted({'torch._dynamo', 'sympy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
