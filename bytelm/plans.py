"""What ``bytelm tune`` has measured of a model, on the disk: ``decode.json``, and ``pairs.safetensors`` beside it.

A plan belongs to weights, to what decodes (the engine's instruction set and kind, or torch's version and dtype), to the
processor, the threads and the version of bytelm. What drafts are worth belongs to the weights alone: where the rest is
another, that is taken, and what steps cost is guessed. Plans change speed, never a byte.

Reading one needs no torch where the engine decodes.
"""

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import xxhash

from bytelm import __version__
from bytelm.bounded_reading import read_bounded
from bytelm.decoding.plan import DecodePlan
from bytelm.drafting import Calibration, StepCost
from bytelm.engine import Engine
from bytelm.errors import GenerationError, SourceError
from bytelm.files import refusals_named, write_file
from bytelm.machine import processor_name
from bytelm.own_files import ANYTHING, TEXT, WHOLE, Fields, FormError, ListOf, Number, parse_json
from bytelm.pair_correction import PATH_OF_PAIRS, read_pairs, write_pairs
from bytelm.shipped import own_folder, shipped_model
from bytelm.utf8 import shown

if TYPE_CHECKING:
    from bytelm.model import ByteLM

PATH_OF_PLAN: Final = "decode.json"
_FORMAT: Final = 2
_KIND: Final = re.compile("(drawn )?((head|agree) [0-9]{1,2} [0-9]{1,2}|(past|against) [0-9]{1,4})")
"""Of drafts that a calibration counts."""
_MOST_BYTES: Final = 4 << 20
_SECONDS: Final = Number(1e-12, 1e6)
_COST: Final = Fields(
    {
        "past": Number(0, (1 << 31) - 1, whole=True),
        "rows": ListOf(Number(1, 1 << 20, whole=True), least=2, most=4096),
        "seconds": ListOf(_SECONDS, least=2, most=4096),
        "head": Number(0.0, 1e6),
        "sequence": Number(0.0, 1e6),
    }
)
_PLAN: Final = Fields(
    {
        "key": Fields(others=TEXT),
        "costs": ListOf(_COST, least=1, most=4096),
        "calibration": Fields(others=ListOf(Number(0.0, 1e9), least=2, most=2), most=4096),
    },
    others=ANYTHING,
)


def key_of(model: "ByteLM | Engine") -> dict[str, str]:
    """What a plan belongs to; ``weights`` is empty for an engine that was not made from a file, which has no plan."""
    if isinstance(model, Engine):
        return {
            "weights": "" if model.source is None else _digest_of_file(model),
            "decoder": f"engine {model.isa} {model.kind}",
            "device": processor_name(),
            "threads": str(model.threads),
            "bytelm": __version__,
        }
    import torch

    device = model.embedding.device
    on_cpu = device.type != "cuda"
    return {
        "weights": weights_digest(_numbers_of_torch(model)),
        "decoder": f"torch {torch.__version__} {str(model.embedding.dtype).removeprefix('torch.')}",
        "device": processor_name() if on_cpu else torch.cuda.get_device_name(device),
        "threads": str(torch.get_num_threads()) if on_cpu else "",
        "bytelm": __version__,
    }


def weights_digest(numbers: Iterable[tuple[str, npt.NDArray[Any]]]) -> str:
    """Digest of weights that does not depend on the dtype in which they happen to be held.

    Args:
        numbers: Names and arrays in torch's order, float32, or bfloat16 as uint16. float32 numbers that are all
            bfloat16 ones give what these would.
    """
    digest = xxhash.xxh3_128()
    for name, array in numbers:
        digest.update(name.encode())
        digest.update(_shortest(np.ascontiguousarray(array).reshape(-1)).view(np.uint8).data)
    return digest.hexdigest()


def write_plan(folder: Path, plan: DecodePlan, model: "ByteLM | Engine") -> Path:
    """Write ``decode.json`` into the folder of a run, and the correction of the heads beside it.

    Raises:
        GenerationError: The engine was made from a torch model, so that nothing says which weights it holds.
        StorageError: The disk refuses.
    """
    key = key_of(model)
    if not key["weights"]:
        raise GenerationError("a plan belongs to the weights of a file, and this engine was made from none; load it")
    value = {
        "format": _FORMAT,
        "key": key,
        "costs": [
            {"past": past, "rows": cost.rows, "seconds": cost.seconds, "head": cost.head, "sequence": cost.sequence}
            for past, cost in plan.costs
        ],
        "calibration": plan.calibration.counts,
    }
    path = folder / PATH_OF_PLAN
    with refusals_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(value, indent=1).encode())
    if plan.pairs is not None:
        write_pairs(folder, plan.pairs, key["weights"])
    return path


def read_plan(folder: Path, model: "ByteLM | Engine") -> tuple[DecodePlan | None, str]:
    """The plan of a run, if it is there and belongs to this model on this machine.

    Args:
        folder: Of the run.
        model: As it is going to decode.

    Returns:
        The plan and "", or None and why a plan that is there is refused ("" where there is none). Where only its
        costs are of another machine or decoder, a plan of guesses with what is known of the weights, and why.
    """
    if not (folder / PATH_OF_PLAN).is_file() and not (folder / PATH_OF_PAIRS).is_file():
        return None, ""
    key = key_of(model)
    if not key["weights"]:
        return None, ""
    pairs, why_pairs = read_pairs(folder, key["weights"], model.heads.count - 1)
    plan, stale, why = _read_costs(folder / PATH_OF_PLAN, key)
    if plan is not None and not stale:
        return replace(plan, pairs=pairs), why_pairs
    worth = plan.calibration if plan is not None and "weights" not in stale else None
    if pairs is None and worth is None:
        return None, why or why_pairs
    return guessed_plan(model, DecodePlan((), worth or Calibration(), pairs)), why or why_pairs


def guessed_plan(model: "ByteLM | Engine", known: DecodePlan | None = None) -> DecodePlan:
    """Guesses of what steps cost, beside what is known of the weights.

    Args:
        model: To be decoded.
        known: Its calibration and pairs are taken.
    """
    pairs, calibration = (None, None) if known is None else (known.pairs, known.calibration)
    if isinstance(model, Engine):
        from bytelm.decoding import engine_decode

        return engine_decode.prior_plan(model, pairs, calibration)
    from bytelm.decoding import plan

    return plan.prior_plan(model, pairs, calibration)


def run_folder(path: Path) -> Path:
    """The folder that a model's plan is written into.

    That of the run that a path names, which may be the path of one of its checkpoints; for a model that ships with
    bytelm one in the user's cache.
    """
    if (shipped := shipped_model(path)) is not None:
        return own_folder(shipped.name)
    return path.parent.parent if path.parent.name == "checkpoints" else path


def find_plan(path: Path, model: "ByteLM | Engine") -> tuple[DecodePlan | None, str]:
    """What is known of a model: ``read_plan`` of its folder, and for a shipped model of what came with it.

    Args:
        path: As ``load`` takes it.
        model: As it is going to decode.
    """
    plan, why = read_plan(run_folder(path), model)
    if plan is None and (shipped := shipped_model(path)) is not None:
        plan, _ = read_plan(shipped, model)  # that its costs are of another machine is nobody's fault
    return plan, why


def _read_costs(path: Path, key: Mapping[str, str]) -> tuple[DecodePlan | None, set[str], str]:
    """The plan in a file, which parts of its key are stale, and why it is not to be used as it is."""
    if not path.exists():
        return None, set(), ""
    again = "and is not used; run bytelm tune again"
    try:
        content = read_bounded(path, _MOST_BYTES, what="the plan", remedy="run bytelm tune again")
        value = parse_json(content, Fields({"format": WHOLE}, others=ANYTHING))
        if value["format"] != _FORMAT:
            return None, set(), f"{path} has format {value['format']} {again}"
        _PLAN.check(value)
        stale = [name for name in key if value["key"].get(name) != key[name]]
        costs = tuple(map(_cost, value["costs"]))
        if not _rise(past for past, _ in costs):
            raise FormError("the bytes before do not rise", "costs")
        counts = {kind: _count(kind, *pair) for kind, pair in value["calibration"].items()}
        why = f"{path} was measured with other {', '.join(stale)} {again}"
        return DecodePlan(costs, Calibration(counts)), set(stale), why if stale else ""
    except (FormError, SourceError) as error:
        return None, set(), f"{path} cannot be read ({error}) {again}"


def _cost(one: Mapping[str, Any]) -> tuple[int, StepCost]:
    """Checked here, for the decoder relies on it."""
    rows, seconds = tuple(one["rows"]), tuple(map(float, one["seconds"]))
    if not _rise(rows) or len(rows) != len(seconds):
        raise FormError("the rows do not rise, or have not as many seconds", "costs")
    return one["past"], StepCost(rows, seconds, float(one["head"]), float(one["sequence"]))


def _rise(values: Iterable[int]) -> bool:
    return all(before < after for before, after in itertools.pairwise(values))


def _count(kind: str, right: float, total: float) -> tuple[float, float]:
    if not _KIND.fullmatch(kind) or right > total:
        raise FormError(f"it counts {shown(kind)[:60]!r} in a way that cannot be", "calibration")
    return float(right), float(total)


def _shortest(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Numbers as bfloat16 where they all are, else as they are."""
    if array.dtype != np.float32:
        return array
    bits = array.view(np.uint32)
    return array if np.any(bits & 0xFFFF) else (bits >> 16).astype(np.uint16)


def _digest_of_file(engine: Engine) -> str:
    from bytelm.engine.weights import read_safetensors, weights_of

    assert engine.source is not None
    found = read_safetensors(engine.source)
    return weights_digest((one.name, found[one.name]) for one in weights_of(engine.config, engine.heads))


def _numbers_of_torch(model: "ByteLM") -> Iterable[tuple[str, npt.NDArray[Any]]]:
    import torch

    for name, value in model.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        yield name, (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor.float()).numpy()
