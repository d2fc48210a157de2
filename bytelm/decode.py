"""The door to decoding: prompts become bytes, through the compiled engine or through torch, whichever the model is of.

Importing this module imports no torch: a model that decodes through the engine never needs it.
"""

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

from bytelm.decoding.plan import DecodePlan, Request, context_start, prior_plan, slid_start
from bytelm.generation import GenerateSettings, Generation, Step

if TYPE_CHECKING:
    from bytelm.engine import Engine
    from bytelm.model import ByteLM

__all__ = [
    "DecodePlan", "Request", "context_start", "decode_batch", "decode_steps", "exactness", "generate",
    "prior_plan", "slid_start",
]  # fmt: skip


def exactness(model: "ByteLM | Engine") -> Literal["bits", "rounding"]:
    """How equal bytes are, whatever is drafted: to the bit through the engine, up to rounding through torch."""
    from bytelm.engine import Engine

    return "bits" if isinstance(model, Engine) else "rounding"


def generate(
    model: "ByteLM | Engine",
    prompt: bytes,
    settings: GenerateSettings,
    *,
    context_bytes: int,
    tuned: DecodePlan | None = None,
) -> Generation:
    """Continue a prompt, as ``decode_steps`` does, and return everything at the end."""
    begin = time.perf_counter()
    steps = list(decode_steps(model, prompt, settings, context_bytes=context_bytes, tuned=tuned))
    return Generation.of(steps, prediction_heads=model.heads.count, elapsed_s=time.perf_counter() - begin)


def decode_steps(
    model: "ByteLM | Engine",
    prompt: bytes,
    settings: GenerateSettings,
    *,
    context_bytes: int,
    tuned: DecodePlan | None = None,
) -> Iterator[Step]:
    """Continue a prompt step by step.

    Args:
        model: An engine, or a model on any device, in any floating dtype.
        prompt: Beginning of a document, any bytes, also none.
        settings: Of the continuation.
        context_bytes: Slots of the context, at least 2; the window that the model was trained with.
        tuned: What was measured on this machine.

    Yields:
        One ``Step`` a pass, the last one with its finish reason; no step if no byte is asked for.

    Raises:
        GenerationError: The model's logits are not finite, or ``exact`` cannot be had.

    Example:
        After "a", heads 1 and 2 had drafted "bc". Head 0 chose "b" after "a" and "x" after "ab": the step has
        ``data=b"bx", sources=(1, 0), drafted=(1, 2), accepted=1, finish_reason=None``.
    """
    for _, step in decode_batch(model, [Request(prompt, settings)], context_bytes=context_bytes, slots=1, tuned=tuned):
        yield step


def decode_batch(
    model: "ByteLM | Engine",
    requests: Iterable[Request],
    *,
    context_bytes: int,
    slots: int = 8,
    tuned: DecodePlan | None = None,
) -> Iterator[tuple[int, Step]]:
    """Continue many prompts side by side; each gets the bytes that it would get alone, through torch up to rounding.

    Args:
        model: An engine, or a model on any device, in any floating dtype.
        requests: Prompts with their settings, taken one by one as places become free. They may differ in everything
            but ``draft`` and ``exact``.
        context_bytes: Slots of each context, at least 2.
        slots: Sequences at a time, at least 1.
        tuned: What was measured on this machine.

    Returns:
        An iterator of the number of a request and its next ``Step``; the last of each has a finish reason. A request
        for no byte has no step.

    Raises:
        GenerationError: While iterating: the model's logits are not finite, ``exact`` cannot be had, or requests differ
            in what they must share.
    """
    from bytelm.engine import Engine

    if isinstance(model, Engine):
        from bytelm.decoding import engine_decode

        return engine_decode.decode_batch(model, requests, context_bytes=context_bytes, slots=slots, tuned=tuned)
    from bytelm.decoding import torch_decode

    return torch_decode.decode_batch(model, requests, context_bytes=context_bytes, slots=slots, tuned=tuned)
