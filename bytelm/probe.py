"""One number of heads against another in a small world: data from a seed, a model for each, one figure.

    DIR/examples.jsonl, corpus/      the training data
    DIR/heads-K-seed-S/              a run for each number of heads and seed
    DIR/probe.json, probe.svg        what each found

What is there already is not done again, so that an interrupted probe goes on with the same command.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from bytelm.api import load
from bytelm.config import RunConfig
from bytelm.data.documents import ReadOptions
from bytelm.data.index import INDEX
from bytelm.data.ingest import ingest
from bytelm.errors import ConfigError
from bytelm.events import Event
from bytelm.figures import Line, curves
from bytelm.files import refusals_named, write_file
from bytelm.held_out import HeldOut
from bytelm.own_files import ANYTHING, TEXT, WHOLE, Fields, read_json
from bytelm.palette import head_colour
from bytelm.polynomials import training_example
from bytelm.stories import story
from bytelm.task import Request, Result
from bytelm.task_probes import arithmetic, induction
from bytelm.train import train

ProbeName = Literal["induction", "arithmetic"]

EXAMPLES: Final[dict[ProbeName, int]] = {"induction": 20_000, "arithmetic": 300_000}
"""Training examples where their number is not said."""

_TASKS: Final[dict[ProbeName, Callable[[Request], Result]]] = {"induction": induction, "arithmetic": arithmetic}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A model and what it found.

    Attributes:
        heads: K.
        seed: Of its training.
        facts: Of the task.
    """

    heads: int
    seed: int
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked of a probe.

    Attributes:
        name: Which one; also the preset of its models.
        out: Folder for everything.
        heads: Numbers of prediction heads, each a model.
        seeds: Of training, each a model.
        examples: Training examples.
        limit: Test examples; the task's own choice where None.
        changes: Of settings, as ``RunConfig.build`` takes them.
    """

    name: ProbeName
    out: Path
    heads: Sequence[int]
    seeds: Sequence[int]
    examples: int
    limit: int | None = None
    changes: Sequence[str] = ()


def probe(plan: Plan, *, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Event | Arm]:
    """Make the data, train a model for each number of heads and seed, and ask each.

    Args:
        plan: What is asked.
        should_stop: Asked before each step of training; True saves and ends.

    Yields:
        What training yields, and after each run its ``Arm``.

    Raises:
        ConfigError: A setting is impossible, or the folder holds another probe.
        StorageError: The disk refuses.
    """
    configs = {
        (heads, seed): RunConfig.build(plan.name, [*plan.changes, f"heads.count={heads}", f"train.seed={seed}"])
        for seed in plan.seeds
        for heads in plan.heads
    }
    corpus = _corpus(plan)
    arms: list[Arm] = []
    for (heads, seed), config in configs.items():
        run = plan.out / f"heads-{heads}-seed-{seed}"
        yield from train(config, corpus, run, resume="auto", should_stop=should_stop)
        if should_stop():
            return
        request = Request(
            model=load(run, precision="float32"),
            checkpoint=run,
            held_out=_none,
            limit=plan.limit,
        )
        arms.append(Arm(heads=heads, seed=seed, facts=_TASKS[plan.name](request).facts))
        _keep(plan, arms)
        yield arms[-1]


def examples(name: ProbeName, count: int) -> Iterator[str]:
    """Training examples, always the same ones."""
    draw = random.Random(f"{name} training")
    for _ in range(count):
        yield story(draw).text if name == "induction" else training_example(draw)


def figure(name: ProbeName, arms: Sequence[Arm]) -> str:
    """What the arms found, as SVG text: over heads, or over operations with a line for each number of heads."""
    numbers = sorted({arm.heads for arm in arms})
    if name == "induction":
        seeds = sorted({arm.seed for arm in arms})
        lines = [
            Line(
                points=sorted((arm.heads, arm.facts["accuracy"]) for arm in arms if arm.seed == seed),
                label=f"seed {seed}",
                colour=head_colour(1 + place, len(seeds) + 1),
            )
            for place, seed in enumerate(seeds)
        ]
        return curves(lines, across="prediction heads", up="second parts of names right", percent=True)
    lines = []
    for place, heads in enumerate(numbers):
        of_these = [arm.facts["by_operations"] for arm in arms if arm.heads == heads]
        points = [(int(m), sum(found[m] for found in of_these) / len(of_these)) for m in of_these[0]]
        lines.append(Line(points=points, label=str(heads), colour=head_colour(1 + place, len(numbers) + 1)))
    return curves(lines, across="operations (trained up to 5)", up="values right", legend="heads", percent=True)


def _none() -> HeldOut:
    raise AssertionError("probes need no held-out bytes")


def _corpus(plan: Plan) -> Path:
    corpus, source = plan.out / "corpus", plan.out / "examples.jsonl"
    made = {"probe": plan.name, "examples": plan.examples}
    mark = plan.out / "examples.json"
    with refusals_named(plan.out):
        plan.out.mkdir(parents=True, exist_ok=True)
        if mark.exists():
            schema = Fields({"probe": TEXT, "examples": WHOLE}, others=ANYTHING)
            found = read_json(mark, schema, remedy="choose another --out", error=ConfigError)
            if found != made:
                raise ConfigError(
                    f"{plan.out} holds a probe of {found['examples']} examples of {found['probe']}; "
                    "choose another --out"
                )
    if not (corpus / INDEX).exists():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in examples(plan.name, plan.examples))
        write_file(source, lines.encode())
        write_file(mark, json.dumps(made).encode())
        ingest([source], corpus, read=ReadOptions(field="text"), keep_duplicates=True, overwrite=True)
    return corpus


def _keep(plan: Plan, arms: Sequence[Arm]) -> None:
    found = [{"heads": arm.heads, "seed": arm.seed, **arm.facts} for arm in arms]
    content = {"probe": plan.name, "examples": plan.examples, "changes": list(plan.changes), "arms": found}
    write_file(plan.out / "probe.json", json.dumps(content, indent=1).encode())
    write_file(plan.out / "probe.svg", figure(plan.name, arms).encode())
