"""A generation as the JSON object of ``--json`` and of each line of a batch."""

import base64
import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bytelm.api import LanguageModel
    from bytelm.generation import GenerateSettings, Generation


def as_json(
    model: "LanguageModel", generation: "Generation", settings: "GenerateSettings", prompt_bytes: int
) -> dict[str, Any]:
    """All that is known of it, its bytes as text and in base64; ``engine`` is what decoded."""
    from bytelm.decode import exactness

    facts = {
        "text": generation.text,
        "bytes_base64": base64.b64encode(generation.data).decode("ascii"),
        "generated_bytes": len(generation.data),
        "prompt_bytes": prompt_bytes,
        "finish_reason": generation.finish_reason,
        "steps": generation.steps,
        "bytes_per_step": generation.bytes_per_step,
        "bytes_per_second": generation.bytes_per_second,
        "elapsed_s": generation.elapsed_s,
        "acceptance_by_head": list(generation.acceptance_by_head),
        "proposed_by_lookup": generation.proposed_by_lookup,
        "accepted_by_lookup": generation.accepted_by_lookup,
        "draft": settings.draft,
        "exact": exactness(model.decoder),
        "engine": dataclasses.asdict(model.decoded_by),
        "temperature": settings.temperature,
        "seed": settings.seed,
    }
    return facts | ({"logprobs": list(generation.logprobs)} if settings.logprobs else {})
