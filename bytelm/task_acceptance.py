"""The task ``acceptance``: what the draft heads are worth on real text, and when the model writes by itself.

Teacher-forced: over held-out text, in every place a draft counts as right where heads 1 … k all name what head 0 names
once it has read that far (``bytelm.breakdown``). Free-running: held-out prompts are continued greedily, all heads
drafting. A small model soon repeats itself, and what repeats is easily drafted, so continuations that have fallen
into a loop are counted apart: their bytes per step say nothing about text.
"""

from collections.abc import Sequence
from typing import Any, Final

from bytelm.breakdown import break_down
from bytelm.errors import CorpusError
from bytelm.evaluate import excerpts
from bytelm.task import Request, Result, share
from bytelm.task_bpb import part_as_json

_PROMPT_BYTES: Final = 128
_CONTINUATION_BYTES: Final = 256
_FORCED_BYTES: Final = 256 << 10  # of held-out text, where no limit is given
_REPEATS: Final = 4
_LEAST_LOOP_BYTES: Final = 32


def acceptance(request: Request) -> Result:
    """Measure drafts on held-out documents; see ``Request`` for what can be chosen.

    Raises:
        CorpusError: There is nothing to score, or not one prompt.
    """
    forced = _teacher_forced(request)
    free, samples = _free_running(request)
    lines = [
        f"bytes per step {free['bytes_per_step']:.3f}, free-running over {free['prompts']} prompts",
        f"acceptance by head: {' '.join(map(share, free['acceptance_by_head']))}",
        f"loops: {free['loops']} of {free['prompts']} continuations repeat themselves; bytes per step without them "
        f"{share(free['bytes_per_step_without_loops'])}",
        f"bytes per step {share(forced['bytes_per_step'])}, teacher-forced over {forced['scored_bytes']:,} bytes",
        f"survival by head: {' '.join(map(share, forced['survival_by_head']))}",
    ]
    for title, key in (("word place", "by_word_place"), ("script", "by_script"), ("type", "by_type")):
        parts = [f"{name} {share(part['bytes_per_step'])}" for name, part in list(forced[key].items())[:12]]
        lines.append(f"bytes per step by {title} of the step's first byte: {'; '.join(parts)}")
    lines += request.held_out().lacking(request.limit_bytes)
    return Result(facts={**free, "teacher_forced": forced}, lines=tuple(lines), samples=tuple(samples))


def loop_period(data: bytes) -> int | None:
    """Length of what the end of the data repeats at least four times and over at least 32 bytes; None if nothing.

    Example:
        >>> loop_period(b"He said: " + b"the sea, " * 4), loop_period(b"once upon a time, long ago")
        (9, None)
    """
    for period in range(1, len(data) // _REPEATS + 1):
        length = max(_REPEATS * period, _LEAST_LOOP_BYTES)
        if length > len(data):
            return None
        tail = data[-length:]
        if tail[period:] == tail[:-period]:
            return period
    return None


def _teacher_forced(request: Request) -> dict[str, Any]:
    held_out, window_bytes = request.held_out(), request.model.context_bytes
    context = request.context_bytes or window_bytes
    limit_bytes = request.limit_bytes or _FORCED_BYTES
    total = min(limit_bytes, held_out.raw_bytes)
    done = 0

    def after_batch(scored_bytes: int) -> None:
        nonlocal done
        done += scored_bytes
        request.progress(done, total)

    found = break_down(
        request.model.model,
        held_out.some(limit_bytes, window_bytes),
        context_bytes=context,
        stride=request.stride,
        after_batch=after_batch,
    )
    return {
        "scored_bytes": found.bits.scored_bytes,
        "bytes_per_step": found.bits.bytes_per_step_estimate,
        "survival_by_head": list(found.bits.agreement_by_head),
        "by_word_place": {name: part_as_json(part) for name, part in found.by_word_place.items()},
        "by_script": {name: part_as_json(part) for name, part in found.by_script.items()},
        "by_type": {name: part_as_json(part) for name, part in found.by_type.items()},
    }


def _free_running(request: Request) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    held_out, model = request.held_out(), request.model
    length = max(1, min(_PROMPT_BYTES, model.context_bytes // 2))
    documents = (data for data, _ in held_out.documents())
    pieces = excerpts(documents, held_out.raw_bytes, count=request.prompts, length=length)
    prompts = [piece[:length] for piece in pieces][: request.prompts]
    if not prompts:
        raise CorpusError("there is no prompt to continue; choose another split or file")
    max_bytes = request.max_bytes or _CONTINUATION_BYTES
    generations = []
    for number, prompt in enumerate(prompts, start=1):
        generations.append(model.generate(prompt, max_bytes=max_bytes, draft="heads"))
        request.progress(number, len(prompts))
    proposed = [sum(counts) for counts in zip(*(one.proposed_by_head for one in generations), strict=True)]
    accepted = [sum(counts) for counts in zip(*(one.accepted_by_head for one in generations), strict=True)]
    periods = [loop_period(one.data) for one in generations]
    straight = [one for one, period in zip(generations, periods, strict=True) if period is None]
    facts = {
        "bytes_per_step": _ratio([len(one.data) for one in generations], [one.steps for one in generations]),
        "acceptance_by_head": [
            right / count if count else None for right, count in zip(accepted, proposed, strict=True)
        ],
        "generated_bytes": sum(len(one.data) for one in generations),
        "steps": sum(one.steps for one in generations),
        "prompts": len(prompts),
        "loops": len(periods) - periods.count(None),
        "bytes_per_step_without_loops": _ratio([len(one.data) for one in straight], [one.steps for one in straight]),
    }
    samples = [
        {
            "prompt": prompt.decode("utf-8", "backslashreplace"),
            "continuation": one.data.decode("utf-8", "backslashreplace"),
            "bytes_per_step": one.bytes_per_step,
            "loop_period": period,
        }
        for prompt, one, period in zip(prompts, generations, periods, strict=True)
    ]
    return facts, samples


def _ratio(parts: Sequence[int], wholes: Sequence[int]) -> float | None:
    return sum(parts) / sum(wholes) if sum(wholes) else None
