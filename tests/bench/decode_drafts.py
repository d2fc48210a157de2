"""Decoding with drafts over decoding without, by text; sequences side by side; Python's part; torch beside.

The plan is what ``bytelm tune`` makes of the first half of every text; prompts are from the second half. ``untuned`` is
what a machine does that nobody has tuned: costs from the shape, the same calibration.
"""

from typing import Any, Final

from decode_rates import Clock, Ran, Rates, clock, decode, say, table
from decode_subjects import CONTEXTS, Subjects
from other_decoders import hugging_face, hugging_face_rate, llama_weights

from bytelm.decode import DecodePlan, Request, decode_batch
from bytelm.decode import prior_plan as torch_prior_plan
from bytelm.decoding.engine_decode import prior_plan
from bytelm.engine import Engine, MatrixKind
from bytelm.generation import GenerateSettings

KINDS: Final[tuple[MatrixKind, ...]] = ("bfloat16", "int8")
BESIDE: Final[dict[MatrixKind, str]] = {"bfloat16": "f32", "int8": "q8_0"}
"""Kinds of weights that drafts are measured with, and the precision of llama.cpp that each stands beside."""
_SLOTS: Final = 16


def drafts(subjects: Subjects) -> dict[str, Any]:
    """The trained model with and without drafts, on every text, greedy and sampled, llama.cpp beside."""
    result: dict[str, Any] = {
        "adaptive_over_plain": {},
        "untuned_over_plain": {},
        "adaptive_over_llama_cpp": {},
        "adaptive_bytes_per_second": {},
        "plain_beside_adaptive_bytes_per_second": {},
        "bytes_per_step": {},
        "rows_per_step": {},
    }
    for kind in KINDS:
        engine = subjects.engine(None, kind)
        plan = subjects.plan(engine)
        for context in CONTEXTS:
            for temperature in subjects.temperatures:
                say(f"drafts, {kind}, {context} bytes before, temperature {temperature}")
                _measure(subjects, engine, plan, kind, context, temperature, result)
    for way in ("adaptive", "untuned"):
        result[f"{way}_over_plain_least"] = min(_leaves(result[f"{way}_over_plain"]))
    return result


def _measure(
    subjects: Subjects,
    engine: Engine,
    plan: DecodePlan,
    kind: MatrixKind,
    context: int,
    temperature: float,
    result: dict[str, Any],
) -> None:
    now, rates, drafted = clock(1), Rates(), {text: Ran() for text in subjects.texts}
    untuned = prior_plan(engine, plan.pairs, plan.calibration)
    max_bytes = 32 if subjects.quick else 128
    # llama.cpp is greedy: a sampled byte costs more.
    beside = [name for name in subjects.llamas(None) if temperature == 0 and f" {BESIDE[kind]}" in name]
    ways = {"plain": ("none", plan), "adaptive": ("adaptive", plan), "untuned": ("adaptive", untuned)}
    for _ in range(subjects.repeats):
        for text in subjects.texts:
            all_prompts = {name: Ran() for name in ways}
            for place, prompt in enumerate(subjects.prompts_of(text, context)):
                for name, (policy, known) in ways.items():  # one after another, so that a prompt is read once
                    ran = decode(
                        engine,
                        [prompt],
                        known,
                        now=now,
                        context_bytes=subjects.context_bytes,
                        draft=policy,
                        max_bytes=max_bytes,
                        temperature=temperature,
                        seed=place,
                    )
                    all_prompts[name].add(ran)
            for name, ran in all_prompts.items():
                rates.add(f"{name} {text}", ran.rate)
            drafted[text].add(all_prompts["adaptive"])
        for name in beside:
            prompts = subjects.prompts_of("python", context)
            rates.add(name, subjects.llamas(None)[name].rate(prompts, max_bytes, 1, now))
    best, summary = rates.best("llama.cpp"), rates.summary()
    rows = {}
    for text, ran in drafted.items():
        found = {
            "adaptive_over_plain": rates.over(f"adaptive {text}", f"plain {text}"),
            "untuned_over_plain": rates.over(f"untuned {text}", f"plain {text}"),
            "adaptive_over_llama_cpp": rates.over(f"adaptive {text}", best),
            "adaptive_bytes_per_second": summary[f"adaptive {text}"],
            "plain_beside_adaptive_bytes_per_second": summary[f"plain {text}"],
            "bytes_per_step": round(ran.bytes / ran.steps, 2),
            "rows_per_step": round(ran.rows / ran.steps, 2),
        }
        for key, value in found.items():
            place = result[key].setdefault(kind, {}).setdefault(f"temperature {temperature:g}", {})
            place.setdefault(str(context), {})[text] = value
        rows[text] = (
            found["plain_beside_adaptive_bytes_per_second"],
            found["adaptive_bytes_per_second"],
            *(found[key] for key in ("adaptive_over_plain", "untuned_over_plain", "adaptive_over_llama_cpp")),
            found["bytes_per_step"],
            found["rows_per_step"],
        )
    columns = (
        "plain, bytes/s",
        "with drafts, bytes/s",
        "over plain",
        "untuned over plain",
        f"over {best or 'llama.cpp'}, plain",
        "bytes a step",
        "rows a step",
    )
    table(f"Drafts, {kind}, {context} bytes before, temperature {temperature:g}, one thread", columns, rows)


def _leaves(tree: Any) -> list[float]:
    return [leaf for one in tree.values() for leaf in _leaves(one)] if isinstance(tree, dict) else [tree]


def batch(subjects: Subjects) -> dict[str, Any]:
    """Sixteen sequences side by side, with and without drafts, and what they keep of one sequence's gain."""
    length = CONTEXTS[0]
    pieces = [piece for kind in ("python", "prose") for piece in subjects.prompts_of(kind, 2 * length, _SLOTS // 2)]
    prompts = [piece[: length // 2 + 6 * place] for place, piece in enumerate(pieces)]  # of unequal lengths
    max_bytes = 24 if subjects.quick else 96
    result: dict[str, Any] = {}
    rows = {}
    for kind in KINDS:
        say(f"sixteen sequences, {kind}")
        engine, rates = subjects.engine(None, kind), Rates()
        plan = subjects.plan(engine)
        for _ in range(subjects.repeats):
            for slots in (1, _SLOTS):
                for policy in ("none", "adaptive"):
                    ran = decode(
                        engine,
                        prompts,
                        plan,
                        now=clock(1),
                        context_bytes=subjects.context_bytes,
                        slots=slots,
                        draft=policy,
                        max_bytes=max_bytes,
                    )
                    rates.add(f"{slots} {policy}", ran.rate)
        alone = rates.over("1 adaptive", "1 none")
        together = rates.over(f"{_SLOTS} adaptive", f"{_SLOTS} none")
        assert alone is not None and together is not None
        kept = round(together / alone, 3)
        result[kind] = {
            "bytes_per_second": rates.summary(),
            "adaptive_over_plain": together,
            "adaptive_over_plain_alone": alone,
            "gain_kept": kept,
        }
        rows[kind] = (*(rates.summary()[name] for name in rates.names), alone, together, kept)
    columns = ("1, plain", "1, drafts", "16, plain", "16, drafts", "gain of 1", "gain of 16", "gain kept")
    table("Sequences side by side, bytes a second, one thread", columns, rows)
    return {"batch16": result}


def python(subjects: Subjects) -> dict[str, Any]:
    """Share of a step that passes outside the library."""
    max_bytes, found = 64 if subjects.quick else 256, {}
    rows = {}
    for kind in KINDS:
        say(f"Python's part, {kind}")
        engine = subjects.engine(None, kind)
        plan, ran = subjects.plan(engine), {"none": Ran(), "adaptive": Ran()}
        prompts = subjects.prompts_of("python", CONTEXTS[0])
        for _ in range(subjects.repeats):
            for policy, all_rounds in ran.items():
                all_rounds.add(
                    decode(
                        engine,
                        prompts,
                        plan,
                        now=clock(1),
                        context_bytes=subjects.context_bytes,
                        draft=policy,
                        max_bytes=max_bytes,
                    )
                )
        found[kind] = {policy: round(1 - one.inside / one.seconds, 4) for policy, one in ran.items()}
        for policy, one in ran.items():
            outside = 1e6 * (one.seconds - one.inside) / one.steps
            rows[f"{kind}, {policy}"] = (1e6 * one.seconds / one.steps, outside, found[kind][policy])
    table("Python in a step, one thread", ("µs a step", "µs in Python", "share"), rows)
    return {"python_share": found}


def torch_beside(subjects: Subjects) -> dict[str, Any]:
    """The same prompts through torch, float32, and Hugging Face ``generate`` where it is installed, one thread."""
    import torch

    from bytelm.checkpoint import load_model

    say("torch")
    torch.set_num_threads(1)
    model, _ = load_model(subjects.path)
    model = model.float().eval()
    engine, now, rates = subjects.engine(None, "bfloat16"), clock(1), Rates()
    tuned = subjects.plan(engine)
    guessed = torch_prior_plan(model, tuned.pairs, tuned.calibration)
    prompts, max_bytes = subjects.prompts_of("python", CONTEXTS[0]), 16 if subjects.quick else 96
    trunk, hugging = subjects.files.shape.trunk, None
    if "transformers" not in subjects.absent:
        hugging = hugging_face(trunk, llama_weights(trunk))
    for _ in range(subjects.repeats):
        for policy in ("none", "adaptive"):
            ran = decode(
                engine,
                prompts,
                tuned,
                now=now,
                context_bytes=subjects.context_bytes,
                draft=policy,
                max_bytes=max_bytes,
            )
            rates.add(f"engine {policy}", ran.rate)
            asked = [GenerateSettings(draft=policy, max_bytes=max_bytes, sequence=n) for n in range(len(prompts))]
            requests = [Request(prompt, settings) for prompt, settings in zip(prompts, asked, strict=True)]
            rates.add(f"torch {policy}", _torch_rate(model, requests, guessed, subjects.context_bytes, now))
        if hugging is not None:
            rates.add("hugging face plain", hugging_face_rate(hugging, prompts, max_bytes, now))
    over = {
        "plain": rates.over("engine none", "torch none"),
        "adaptive": rates.over("engine adaptive", "torch adaptive"),
        "plain_over_hugging_face": rates.over("engine none", "hugging face plain"),
    }
    table(
        "Beside torch, trained model, engine in bfloat16, torch in float32, one thread",
        ("bytes/s",),
        {name: (value,) for name, value in rates.summary().items()},
    )
    return {"over_torch": over, "torch_bytes_per_second": rates.summary()}


def _torch_rate(model: Any, requests: list[Request], plan: DecodePlan, context_bytes: int, now: Clock) -> float:
    """Bytes a second after the first step of each prompt, which ends where it has been read."""
    done, seconds = 0, 0.0
    for request in requests:
        begin: float | None = None
        for _, step in decode_batch(model, [request], context_bytes=context_bytes, slots=1, tuned=plan):
            if begin is None:
                begin = now()
            else:
                done += len(step.data)
        assert begin is not None
        seconds += now() - begin
    return done / seconds
