"""``bytelm compare`` and ``bytelm ablate``: arms at equal budgets, in one report."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from bytelm.cli import console
from bytelm.cli.interrupt import StopRequest
from bytelm.cli.quantities import parse_size

if TYPE_CHECKING:
    from bytelm.arms import Arm

_ARMS: Final = "byte:k=1,byte:k=8,bpe:1024:k=1,bpe:4096:k=1"

_Corpus = Annotated[str, typer.Option("--corpus", metavar="DIR", help="A corpus with a validation split.")]
_Out = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Folder of the comparison; one that is there goes on.")
]
_Budget = Annotated[
    str,
    typer.Option(
        "--budget",
        metavar="KIND:N,N…",
        help="Equal for all: parameters:1M, flops:1e13, bytes:50M, seconds:600; or several amounts of one kind, as in "
        "seconds:60,240: each arm is trained at each.",
    ),
]
_Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Trainings of each arm at each budget, with seeds 0, 1, …")]
_Preset = Annotated[str, typer.Option("--preset", help="Settings that all arms begin with.")]
_Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting of all arms; again for more."),
]
_Scored = Annotated[
    str, typer.Option("--scored-bytes", metavar="SIZE", help="Held-out bytes that are scored, at most.")
]
_Stride = Annotated[
    int | None, typer.Option("--stride", help="Bytes that a scored window advances. Default: half the context.")
]
_Prompts = Annotated[int, typer.Option("--prompts", min=1, help="Held-out prompts that are continued for the speed.")]
_MaxBytes = Annotated[int, typer.Option("--max-bytes", min=8, help="Bytes of each continuation.")]
_Tune = Annotated[
    bool,
    typer.Option(
        "--tune-arms",
        help="Choose learning rate and batch for each arm, on held-out text that the scores do not use: the rate "
        "× 1/2, 1, 2, then train.batch_windows × 1/2, 1, 2 at the best rate, each training with 1/4 of the smallest "
        "budget. An arm keeps what it sets itself.",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def compare(
    corpus: _Corpus,
    out: _Out,
    budget: _Budget,
    arms: Annotated[
        str,
        typer.Option(
            "--arms",
            metavar="ARM,ARM…",
            help="byte:k=K or bpe:SIZE:k=K, then :family=…, :curriculum=… or :section.key=value; run=FOLDER for a run, "
            "hf=FOLDER for a model of transformers.",
        ),
    ] = _ARMS,
    seeds: _Seeds = 2,
    preset: _Preset = "tiny",
    changes: _Changes = None,
    scored_bytes: _Scored = "1M",
    stride: _Stride = None,
    prompts: _Prompts = 8,
    max_bytes: _MaxBytes = 256,
    tune_arms: _Tune = False,
    as_json: _Json = False,
) -> int:
    """Train byte models and BPE baselines at equal budgets, and tell what each is worth on every axis.

    All arms have the same trunk, trainer, decoder, and context in bytes. DIR gets report.html, figures and
    comparison.json. What was interrupted goes on with the same command.
    """
    from bytelm.arms import parse_arms

    return _compare(
        "compare", parse_arms(arms), corpus, out, budget, seeds, preset, changes,
        scored_bytes, stride, prompts, max_bytes, tune_arms=tune_arms, as_json=as_json,
    )  # fmt: skip


def ablate(
    corpus: _Corpus,
    out: _Out,
    budget: _Budget,
    heads: Annotated[str, typer.Option("--heads", metavar="K,K…", help="Numbers of prediction heads.")] = "1,2,4,8",
    families: Annotated[str, typer.Option("--families", help="Head families, with commas.")] = "linear",
    curricula: Annotated[str, typer.Option("--curricula", help="Curricula, with commas.")] = "none",
    seeds: _Seeds = 2,
    preset: _Preset = "tiny",
    changes: _Changes = None,
    scored_bytes: _Scored = "1M",
    stride: _Stride = None,
    prompts: _Prompts = 8,
    max_bytes: _MaxBytes = 256,
    tune_arms: _Tune = False,
    as_json: _Json = False,
) -> int:
    """Train byte models that differ in their heads alone: numbers, families, curricula, each against one head.

    A comparison with these arms: the quality of head 0, bytes a decoding step, and what the heads cost in training.
    """
    from bytelm.arms import ablation_arms

    return _compare(
        "ablate", ablation_arms(heads, families, curricula), corpus, out, budget, seeds, preset, changes,
        scored_bytes, stride, prompts, max_bytes, tune_arms=tune_arms, as_json=as_json,
    )  # fmt: skip


def _compare(
    command: str,
    arms: "list[Arm]",
    corpus: str,
    out: Path,
    budget: str,
    seeds: int,
    preset: str,
    changes: list[str] | None,
    scored_bytes: str,
    stride: int | None,
    prompts: int,
    max_bytes: int,
    *,
    tune_arms: bool,
    as_json: bool,
) -> int:
    from bytelm.arms import Plan, parse_budgets
    from bytelm.compare import compare as run_comparison
    from bytelm.comparison_facts import sentences
    from bytelm.comparison_page import PATH_OF_PAGE, write_comparison_report

    base = _base(preset, changes or [])
    plan = Plan(
        arms=tuple(arms),
        budgets=parse_budgets(budget),
        seeds=tuple(range(seeds)),
        base=base,
        scored_bytes=parse_size(scored_bytes),
        stride_bytes=max(1, base.data.window_bytes // 2) if stride is None else stride,
        prompts=prompts,
        generated_bytes=max_bytes,
        tune_arms=tune_arms,
    )
    with StopRequest() as should_stop:
        comparison = run_comparison(plan, corpus, out, tell=console.say, should_stop=should_stop)
    facts = write_comparison_report(comparison, out, made_by=f"bytelm {command}")
    if as_json:
        console.print_json(facts)
    else:
        for sentence in sentences(comparison):
            console.result(sentence)
        console.result(console.one_line(out / PATH_OF_PAGE), whole=True)
    if comparison.stopped:
        console.say(f"stopped, and all is saved; go on with: {shlex.join(['bytelm', *sys.argv[1:]])}", whole=True)
        return console.EXIT_INTERRUPTED
    if comparison.failed:
        console.say(f"{len(comparison.failed)} runs failed; the same command tries them again")
        return console.EXIT_CALLER
    return console.EXIT_OK


def _base(preset: str, changes: list[str]) -> Any:
    """Settings of all arms: those of the preset, saving and sampling as little as a comparison needs."""
    from bytelm.config import RunConfig
    from bytelm.errors import ConfigError

    if any(change.partition("=")[0].strip() == "train.seed" for change in changes):
        raise ConfigError("--set train.seed has no effect: each arm is trained with seeds 0, 1, …; use --seeds")
    quiet = ["train.sample_bytes=0", "train.keep_best=false", "train.keep_checkpoints=1"]
    return RunConfig.build(preset, [*quiet, *changes])
