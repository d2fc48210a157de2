"""``bytelm quickstart``: the model that ships speaks; then the whole way, on the sample or on files of one's own."""

import contextlib
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from bytelm.cli import console
from bytelm.cli.interrupt import StopRequest
from bytelm.cli.quantities import parse_duration, size
from bytelm.cli.train import validated_often

if TYPE_CHECKING:
    from bytelm.config import RunConfig
    from bytelm.data.ingest import IngestProgress
    from bytelm.quickstart import CorpusReady
    from bytelm.report import SideBySide

_TRAINING_TIME: Final = "5m"
_SHOWN_BYTES: Final = 120
_GENTLER: Final = 0.25
_NARROW: Final = 70  # columns up to which a table stands in lines
_PROMPT_COLUMNS: Final = 20
_LINE_EVERY_S: Final = 4.0


def quickstart(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for everything; one that is there is gone on with.")
    ] = Path("quickstart"),
    corpus: Annotated[
        Path | None,
        typer.Option("--corpus", metavar="PATH", help="Train on these files instead: a folder, a file, or a corpus."),
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option("--init-from", metavar="RUN", help="Go on from this model instead of random weights, say nano."),
    ] = None,
    time_budget: Annotated[
        str, typer.Option("--time-budget", metavar="TIME", help="Time to train: 90s, 5m, 1h.")
    ] = _TRAINING_TIME,
    steps: Annotated[int | None, typer.Option("--steps", help="Train for this many steps instead.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting; again for more.")
    ] = None,
    max_bytes: Annotated[int, typer.Option("--max-bytes", min=1, help="Bytes to generate for each prompt.")] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> int:
    """See a byte model speak, train one of your own, and compare its decoders.

    The model that ships continues two prompts, sampled, with and without drafts. Then the shipped sample, or --corpus,
    is ingested, a small model of eight heads trains on it for --time-budget, decodes with and without drafts, and a
    report is written. With --init-from nano it begins as the shipped model, which gives a useful one in minutes.
    Ctrl-C while it trains saves; the same command goes on.
    """
    from bytelm.config import RunConfig

    begin_s = time.monotonic()
    budget = f"train.steps={steps}" if steps is not None else f"train.time_budget_s={parse_duration(time_budget)}"
    wanted = [budget, *(changes or [])]
    config = RunConfig.build("tiny", wanted) if init_from is None else _continued(init_from, wanted)
    config = validated_often(config, changes or [])
    console.say("loading torch …")

    import torch

    from bytelm.cli.dashboard import TrainingView
    from bytelm.device import choose_decoding_threads
    from bytelm.quickstart import SHIPPED, Compared, CorpusReady, Loaded, NotShipped, Reported, Spoke
    from bytelm.quickstart import quickstart as run_quickstart
    from bytelm.run_log import read_log
    from bytelm.train import Finished, Started

    people = console.people()
    ingesting = _Ingesting()
    parameters, compared = 0, False
    view: TrainingView | None = None
    finished: Finished | None = None
    reported: Reported | None = None
    spoken: list[SideBySide] = []
    stop = StopRequest()
    with contextlib.ExitStack() as training:
        for event in run_quickstart(
            out, config, source=corpus, max_bytes=max_bytes, on_ingest=ingesting, should_stop=stop
        ):
            match event:
                case Loaded():
                    if spoken and not compared and finished is None:
                        _say_verdict(people, tuple(spoken))
                        if init_from is None:
                            _say(people, "(--init-from nano would begin with this model, and be useful after minutes)")
                    console.say(f"{event.what} …")
                case NotShipped():
                    console.say(f"this installation carries no model {event.name}; going on without it")
                case Spoke():
                    if not spoken:
                        console.say("\nthe model that ships, sampled with drafts; plain decoding gives the same bytes:")
                        people.print(_legend(event.comparison))
                    spoken.append(event.comparison)
                    _show(people, event.comparison)
                case CorpusReady():
                    _say(people, _corpus_line(event))
                    training.enter_context(stop)  # before and after it, Ctrl-C leaves at once: there is nothing to save
                    view = training.enter_context(TrainingView(people))
                case Compared():
                    if not compared:
                        compared = True
                        people.print(_legend(event.comparison))
                    _show(people, event.comparison)
                case Reported():
                    reported = event
                case _:
                    assert view is not None
                    view.show(event)
                    if isinstance(event, Started):
                        parameters = event.parameters
                    elif isinstance(event, Finished):
                        finished = event
                        training.close()
                        torch.set_num_threads(choose_decoding_threads(parameters))
    assert finished is not None
    if reported is None:
        console.say(f"stopped at step {finished.step}, saved; the same command goes on")
        return console.EXIT_INTERRUPTED
    comparisons = reported.comparisons
    if not as_json:
        people.print(_table(comparisons, people.width))
        _say_verdict(people, comparisons)
        _say(people, f"{time.monotonic() - begin_s:.0f} s in all; the report, curves and coloured samples:")
        console.result(console.one_line(reported.page), whole=True)
        _say(people, "next, with the model that ships and with your own one:")
        program = console.one_line(console.program())
        for name, prompt in ((SHIPPED, "def main("), (shlex.quote(str(reported.run)), "The ")):
            console.say(f'  {program} generate {console.one_line(name)} "{prompt}" --show-drafts', whole=True)
        return console.EXIT_OK
    validation = next(record for record in reversed(read_log(reported.run)) if record["kind"] == "validation")
    console.print_json(
        _summary(comparisons)
        | {
            "run": str(reported.run),
            "report": str(reported.page),
            "step": finished.step,
            "bytes_seen": finished.bytes_seen,
            "bits_per_byte": validation["bits_per_byte"],
            "bits_per_byte_by_head": validation["bits_per_byte_by_head"],
            "shipped": _summary(tuple(spoken)) if spoken else None,
            "elapsed_s": round(time.monotonic() - begin_s, 3),
        }
    )
    return console.EXIT_OK


def _continued(init_from: Path, changes: list[str]) -> "RunConfig":
    """Settings to go on from a model: its own, with a rate that does not undo what it knows."""
    from bytelm.fine_tuning import settings_from

    known = settings_from(init_from, ["train.threads=0"])
    return known.with_changes([f"train.learning_rate={known.train.learning_rate * _GENTLER}", *changes])


def _corpus_line(ready: "CorpusReady") -> str:
    verb = "found" if ready.reused else "ingested"
    ratio = ready.raw_bytes / ready.packed_bytes
    return f"{verb} {ready.documents} documents, {size(ready.raw_bytes)}, packed {ratio:.2f} : 1, in {ready.corpus}"


class _Ingesting:
    """A line now and then while files are read."""

    def __init__(self) -> None:
        self._due_s = time.monotonic() + _LINE_EVERY_S

    def __call__(self, progress: "IngestProgress") -> None:
        if time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + _LINE_EVERY_S
            console.say(f"  {progress.documents:,} documents, {size(progress.raw_bytes)}")


def _say(people: Console, line: str, style: str = "") -> None:
    """A line for people, folded between words where there is a terminal, whole elsewhere."""
    people.print(console.styled(line, style), soft_wrap=not people.is_terminal)


def _legend(comparison: "SideBySide") -> Text:
    """Every source in its colour."""
    from bytelm.palette import head_colour

    heads = len(comparison.speculative.proposed_by_head)
    line = Text("bytes of the trunk, or drafted by head")
    for head in range(1, heads):
        line.append(f" {head}", style=head_colour(head, heads))
    return line.append(", by prompt lookup", style=head_colour(-1, heads))


def _show(people: Console, comparison: "SideBySide") -> None:
    """The beginning of the text, coloured by head; and of the plain one, should it be another."""
    from bytelm.palette import head_colour
    from bytelm.report import coloured_text
    from bytelm.utf8 import decode_text

    plain, speculative = comparison.plain, comparison.speculative
    heads = len(speculative.proposed_by_head)
    for generation in (speculative,) if comparison.equal else (speculative, plain):
        line = Text(console.shown(decode_text(comparison.prompt)), style="bold")
        for text, head in coloured_text(generation.data[:_SHOWN_BYTES], generation.sources[:_SHOWN_BYTES]):
            colour = head_colour(head, heads) if generation is speculative and head else ""
            line.append(console.shown(text), style=f"not bold {colour}")
        people.print(line.append("…" if len(generation.data) > _SHOWN_BYTES else "", style="not bold"))
    _say(people, f"{_facts(comparison)}\n", "dim")


def _facts(comparison: "SideBySide") -> str:
    speculative = comparison.speculative
    equal = "the same bytes as plain decoding" if comparison.equal else "OTHER BYTES THAN PLAIN DECODING"
    by_heads, by_lookup = comparison.gained
    return (
        f"{len(speculative.data)} bytes in {speculative.steps} steps, {speculative.bytes_per_step:.2f} bytes a step: "
        f"1 by the trunk, {by_heads:.2f} by heads, {by_lookup:.2f} by prompt lookup; {equal}"
        + ("; ends in a loop, which is easily drafted" if comparison.loops else "")
    )


def _table(comparisons: "tuple[SideBySide, ...]", columns: int) -> RenderableType:
    """What each prompt's decoding gained: a table, or lines where there is no room for one."""
    rows = []
    for comparison in comparisons:
        by_heads, by_lookup = comparison.gained
        rows.append(
            (
                repr(comparison.prompt.decode("utf-8", "backslashreplace"))[1:-1],
                f"{comparison.speculative.bytes_per_step:.2f}",
                f"{by_heads:.2f}",
                f"{by_lookup:.2f}",
                *(f"{one.bytes_per_second:,.0f}" for one in (comparison.speculative, comparison.plain)),
                "loop" if comparison.loops else "",
            )
        )
    if columns <= _NARROW:
        lines = Text()
        for prompt, per_step, heads, lookup, drafted, plain, loop in rows:
            lines.append(f"{console.shown(prompt)[: columns - 1]}\n", style="bold")
            lines.append(f"  {per_step} bytes a step\n  heads +{heads}, lookup +{lookup}{loop and ', a loop'}\n")
            lines.append(f"  {drafted} bytes/s, plain {plain}\n")
        return lines
    table = Table(box=None, padding=(0, 1), show_edge=False)
    table.add_column("prompt", no_wrap=True, overflow="ellipsis", max_width=_PROMPT_COLUMNS)
    titles = ["bytes\na step", "by\nheads", "by\nlookup", "with drafts\nbytes/s", "plain\nbytes/s"]
    if loops := any(comparison.loops for comparison in comparisons):
        titles.append("ends\nin a")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for prompt, *values in rows:
        table.add_row(console.styled(prompt, ""), *(values if loops else values[:-1]))
    return table


def _say_verdict(people: Console, comparisons: "tuple[SideBySide, ...]") -> None:
    summary = _summary(comparisons)
    equal = "equal byte for byte" if summary["equal"] else "NOT EQUAL, which is a bug: please report it"
    loops = sum(comparison.loops for comparison in comparisons)
    _say(
        people,
        f"speculative and plain output: {equal}; {summary['bytes_per_step']:.2f} bytes per step, "
        f"{summary['speculative_over_plain']:.2f}× the speed of plain decoding"
        + (f"; {loops} of {len(comparisons)} texts end in a loop, which is easily drafted" if loops else ""),
    )


def _summary(comparisons: "tuple[SideBySide, ...]") -> dict[str, Any]:
    from bytelm.report import acceptance_over, rate_over

    speculative = [comparison.speculative for comparison in comparisons]
    rate, steps = rate_over(speculative), sum(one.steps for one in speculative)
    return {
        "equal": all(comparison.equal for comparison in comparisons),
        "generated_bytes": sum(len(generation.data) for generation in speculative),
        "bytes_per_step": sum(len(one.data) for one in speculative) / steps,
        "bytes_per_second": rate,
        "speculative_over_plain": rate / rate_over([comparison.plain for comparison in comparisons]),
        "acceptance_by_head": acceptance_over(comparisons),
        "temperature": comparisons[0].temperature,
        "gained_by_heads": sum(one.gained[0] * one.speculative.steps for one in comparisons) / steps,
        "gained_by_lookup": sum(one.gained[1] * one.speculative.steps for one in comparisons) / steps,
        "loops": sum(comparison.loops for comparison in comparisons),
    }
