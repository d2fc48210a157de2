"""``bytelm probe``: one head against several in a small world made from a seed, as one figure."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from bytelm.cli import console
from bytelm.cli.interrupt import StopRequest


def probe(
    name: Annotated[Literal["induction", "arithmetic"], typer.Argument(help="induction or arithmetic.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for everything; one that is there is gone on with.")],
    heads: Annotated[str, typer.Option("--heads", metavar="K,K…", help="Numbers of prediction heads.")] = "1,2,4,8",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Trainings of each.")] = 1,
    examples: Annotated[
        int | None, typer.Option("--examples", min=100, help="Training examples. Default: 20,000 stories, or 300,000.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Test examples. Default: the task's.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting of the preset; again for more."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> int:
    """Train models that differ in their heads alone on data made from a seed, ask each, and draw what they found.

    DIR gets the data, a run for each model, probe.json and probe.svg. Ctrl-C saves; the same command goes on.
    """
    from bytelm.errors import ConfigError

    numbers = [int(word) if word.strip().isdigit() else 0 for word in heads.split(",")]
    if 0 in numbers or len(set(numbers)) < len(numbers):
        raise ConfigError(f"--heads {heads} are no numbers of heads, each once; write them like 1,2,4,8")

    from bytelm.cli.dashboard import TrainingView
    from bytelm.probe import EXAMPLES, Arm, Plan
    from bytelm.probe import probe as run_probe

    plan = Plan(
        name=name,
        out=out,
        heads=numbers,
        seeds=range(seeds),
        examples=EXAMPLES[name] if examples is None else examples,
        limit=limit,
        changes=changes or (),
    )
    arms: list[Arm] = []
    with StopRequest() as stop, TrainingView(console.people()) as view:
        for event in run_probe(plan, should_stop=stop):
            if isinstance(event, Arm):
                arms.append(event)
                console.say(f"{event.heads} heads, seed {event.seed}: {event.facts['accuracy']:.4f} right")
            else:
                view.show(event)
        stopped = stop()
    if stopped:
        return console.EXIT_INTERRUPTED
    if as_json:
        console.print_json({"probe": name, "arms": [{"heads": a.heads, "seed": a.seed, **a.facts} for a in arms]})
    else:
        for arm in arms:
            console.result(f"{arm.heads} heads, seed {arm.seed}: {arm.facts['accuracy']:.4f} right")
        console.say(f"drawn in {out / 'probe.svg'}")
    return console.EXIT_OK
