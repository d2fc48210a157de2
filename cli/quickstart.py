"""``bytelm quickstart``: the model that ships speaks; then the whole way, on the sample or on files of one's own."""

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bytelm.cli import console
from bytelm.cli.interrupt import StopRequest
from bytelm.cli.quantities import parse_duration, size

if TYPE_CHECKING:
    from bytelm.config import RunConfig
    from bytelm.quickstart import CorpusReady
    from bytelm.report import SideBySide

_TRAINING_TIME: Final = "5m"
_SHOWN_BYTES: Final = 120
_GENTLER: Final = 0.25


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

    The model that ships continues two prompts, with and without drafts. Then the shipped sample, or --corpus, is
    ingested, a small model of eight heads trains on it for --time-budget, decodes with and without drafts, and a
    report is written. With --init-from nano it begins as the shipped model, which gives a useful one in minutes.
    Ctrl-C while it trains saves; the same command goes on.
    """
    import torch

    from bytelm.cli.dashboard import TrainingView
    from bytelm.config import RunConfig
    from bytelm.device import choose_decoding_threads
    from bytelm.quickstart import Compared, CorpusReady, NotShipped, Reported, Spoke
    from bytelm.quickstart import quickstart as run_quickstart
    from bytelm.run_log import read_log
    from bytelm.train import Finished, Started

    begin_s = time.monotonic()
    budget = f"train.steps={steps}" if steps is not None else f"train.time_budget_s={parse_duration(time_budget)}"
    wanted = [budget, *(changes or [])]
    config = RunConfig.build("tiny", wanted) if init_from is None else _continued(init_from, wanted)
    people = console.people()
    parameters = 0
    view: TrainingView | None = None
    finished: Finished | None = None
    reported: Reported | None = None
    spoken: list[SideBySide] = []
    stop = StopRequest()
    with contextlib.ExitStack() as training:
        for event in run_quickstart(out, config, source=corpus, max_bytes=max_bytes, should_stop=stop):
            match event:
                case NotShipped():
                    console.say(f"this installation carries no model {event.name}; going on without it")
                case Spoke():
                    if not spoken:
                        console.say("the model that ships, decoded plainly and with drafts:")
                    spoken.append(event.comparison)
                    _show(people, event.comparison)
                case CorpusReady():
                    if spoken:
                        console.say(_verdict(tuple(spoken)))
                        if init_from is None:
                            console.say("(--init-from nano would begin with this model, and be useful after minutes)")
                    console.say(_corpus_line(event))
                    training.enter_context(stop)  # before and after it, Ctrl-C leaves at once: there is nothing to save
                    view = training.enter_context(TrainingView(people))
                case Compared():
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
        people.print(_table(comparisons))
        console.say(_verdict(comparisons))
        console.say(f"{time.monotonic() - begin_s:.0f} s in all; the report, curves and coloured samples:")
        console.result(str(reported.page))
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


def _show(people: Console, comparison: "SideBySide") -> None:
    """The beginning of both outputs, the speculative one coloured by head."""
    from bytelm.palette import head_colour
    from bytelm.report import coloured_text
    from bytelm.utf8 import decode_text

    plain, speculative = comparison.plain, comparison.speculative
    heads = len(speculative.proposed_by_head)
    for name, generation in (("plain", plain), ("speculative", speculative)):
        line = console.styled(f"{name}: ", "dim").append(console.shown(decode_text(comparison.prompt)), style="bold")
        for text, head in coloured_text(generation.data[:_SHOWN_BYTES], generation.sources[:_SHOWN_BYTES]):
            line.append(console.shown(text), style=head_colour(head, heads) if generation is speculative else "")
        people.print(line.append("…" if len(generation.data) > _SHOWN_BYTES else ""))
    people.print(Text(f"{_facts(comparison)}\n", style="dim"))


def _facts(comparison: "SideBySide") -> str:
    speculative = comparison.speculative
    equal = "the same bytes as plain decoding" if comparison.equal else "OTHER BYTES THAN PLAIN DECODING"
    return (
        f"{len(speculative.data)} bytes in {speculative.steps} steps, {speculative.bytes_per_step:.2f} bytes a step; "
        f"{equal}"
    )


def _table(comparisons: "tuple[SideBySide, ...]") -> Table:
    table = Table(box=None, padding=(0, 1))
    table.add_column("prompt", no_wrap=True, overflow="ellipsis", max_width=24)
    for title in ("bytes per step", "speculative", "plain", "bytes"):
        table.add_column(title, justify="right", no_wrap=True)
    for comparison in comparisons:
        generations = (comparison.speculative, comparison.plain)
        table.add_row(
            console.styled(repr(comparison.prompt.decode("utf-8", "backslashreplace"))[1:-1], ""),
            f"{comparison.speculative.bytes_per_step:.2f}",
            *(f"{generation.bytes_per_second:,.0f} B/s" for generation in generations),
            "equal" if comparison.equal else "DIFFERENT",
        )
    return table


def _verdict(comparisons: "tuple[SideBySide, ...]") -> str:
    summary = _summary(comparisons)
    equal = "equal byte for byte" if summary["equal"] else "NOT EQUAL, which is a bug: please report it"
    return (
        f"speculative and plain output: {equal}; {summary['bytes_per_step']:.2f} bytes per step, "
        f"{summary['speculative_over_plain']:.2f}× the speed of plain decoding"
    )


def _summary(comparisons: "tuple[SideBySide, ...]") -> dict[str, Any]:
    from bytelm.report import acceptance_over, rate_over

    speculative = [comparison.speculative for comparison in comparisons]
    rate = rate_over(speculative)
    return {
        "equal": all(comparison.equal for comparison in comparisons),
        "generated_bytes": sum(len(generation.data) for generation in speculative),
        "bytes_per_step": sum(len(one.data) for one in speculative) / sum(one.steps for one in speculative),
        "bytes_per_second": rate,
        "speculative_over_plain": rate / rate_over([comparison.plain for comparison in comparisons]),
        "acceptance_by_head": acceptance_over(comparisons),
    }
