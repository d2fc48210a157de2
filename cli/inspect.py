"""``bytelm inspect``: what is in a corpus or in a checkpoint, and whether it is whole."""

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console

from bytelm.cli import console
from bytelm.cli.quantities import size
from bytelm.shipped import shipped_model

if TYPE_CHECKING:
    from bytelm.data.shards import Corpus

_LINE_EVERY_S: Final = 10.0
_DAMAGES_SHOWN: Final = 100


def inspect(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="CORPUS|RUN",
            help="A corpus (folder or address), a run, one of its checkpoints, or a shipped model.",
        ),
    ],
    split: Annotated[str | None, typer.Option("--split", help="Only this split of a corpus.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every byte of a corpus; exit 2 where one is damaged.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Read all of a corpus, and not only shards and frames spread over it.")
    ] = False,
    samples: Annotated[int, typer.Option("--samples", min=0, max=1000, help="Documents to show beginnings of.")] = 3,
    seed: Annotated[int, typer.Option("--seed", help="Which documents: the same seed shows the same ones.")] = 0,
    page: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with figures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Show what is in a corpus: splits, kinds, what was left out, lengths, bytes, samples.

    Counts come from the index and are of all documents. Lengths come from the tables of at most 64 shards, bytes from
    at most 256 frames, spread evenly; how much was read is said. Of a run or checkpoint every file is checked, and
    its parameters, settings and place in the training are shown.
    """
    if _is_run(subject):
        _refuse_for_runs(split=split, verify=verify, full=full, html=page)
        _inspect_run(Path(subject), as_json=as_json)
        return

    from bytelm.data.describe import content_facts, index_facts, read_contents
    from bytelm.data.shards import Corpus
    from bytelm.errors import ConfigError, CorpusError

    if page is not None and not page.parent.is_dir():
        raise ConfigError(f"--html {page}: there is no folder {page.parent}; make it, or choose another place")
    corpus = Corpus.open(subject)
    splits = corpus.splits if split is None else (split,)
    facts = index_facts(corpus, splits)
    damages: list[dict[str, Any]] = []
    if verify:
        facts["verified"] = _verify(corpus, splits, facts["raw_bytes"])
        damages = facts["verified"]["damages"]
    if not damages:
        with _progress("reading", facts["raw_bytes"] if full else None) as on_frame:
            most = {"most_shards": None, "most_frames": None} if full else {}
            contents = read_contents(corpus, splits, samples=samples, seed=seed, on_frame=on_frame, **most)
        facts |= content_facts(contents)
    if page is not None:
        _write_page(page, facts)
    if as_json:
        console.print_json(facts)
    else:
        _show_corpus(facts, page)
    if damages:
        files = len({damage["file"] for damage in damages})
        raise CorpusError(
            f"{subject} is damaged: {len(damages)} places in {files} files; restore them, or ingest the sources again"
        )


def _is_run(subject: str) -> bool:
    path = Path(subject)
    return (path / "checkpoints").is_dir() or (path / "manifest.json").is_file() or shipped_model(path) is not None


def _refuse_for_runs(**options: Any) -> None:
    from bytelm.errors import ConfigError

    for name, value in options.items():
        if value:
            raise ConfigError(f"--{name} is for a corpus, and this is a run or a checkpoint; leave it out")


def _verify(corpus: "Corpus", splits: Sequence[str], raw_bytes: int) -> dict[str, Any]:
    from dataclasses import asdict

    from bytelm.data.verify import verify

    begin_s = time.monotonic()
    with _progress("checking", raw_bytes) as on_frame:
        found = verify(corpus, splits, threads=os.cpu_count() or 1, on_frame=on_frame)
    return {
        "whole": not found.damages,
        "shards": found.shards,
        "frames": found.frames,
        "raw_bytes": found.raw_bytes,
        "elapsed_s": round(time.monotonic() - begin_s, 3),
        "damages": [asdict(damage) for damage in found.damages],
        "unnamed": list(found.unnamed),
    }


def _write_page(path: Path, facts: dict[str, Any]) -> None:
    from bytelm.cli.inspect_page import corpus_page
    from bytelm.data.documents import name_of
    from bytelm.files import write_file

    write_file(path, corpus_page(facts).encode())
    facts["html"] = name_of(path)


def _show_corpus(facts: dict[str, Any], page: Path | None) -> None:
    from bytelm.cli.inspect_view import corpus_view

    terminal = _results()
    # What a program reads is not folded at a width that nobody sees.
    terminal.print(corpus_view(facts, terminal), soft_wrap=not terminal.is_terminal)
    verified = facts.get("verified")
    if verified is not None:
        terminal.print()
        for damage in verified["damages"][:_DAMAGES_SHOWN]:
            terminal.print(console.styled(damage["what"], "red"), soft_wrap=True)
        if len(verified["damages"]) > _DAMAGES_SHOWN:
            terminal.print(f"and {len(verified['damages']) - _DAMAGES_SHOWN:,} more; --json names all")
        if verified["unnamed"]:
            names = ", ".join(map(console.one_line, verified["unnamed"]))
            terminal.print(f"no part of the corpus, and never read: {names}")
        terminal.print(
            f"checked {verified['shards']:,} shards, {verified['frames']:,} frames, {size(verified['raw_bytes'])} in "
            f"{verified['elapsed_s']:.1f} s: {'whole' if verified['whole'] else 'DAMAGED'}"
        )
    if page is not None:
        terminal.print(f"page {console.one_line(facts['html'])}", soft_wrap=True)


def _inspect_run(path: Path, *, as_json: bool) -> None:
    from bytelm.checkpoint import find_checkpoint, is_model_alone, load_snapshot, load_weights, read_training
    from bytelm.data.documents import name_of

    checkpoint = find_checkpoint(path)
    bytes_seen: int | None = None
    if is_model_alone(checkpoint):
        config, weights = load_weights(checkpoint)
        step, corpus, fingerprint = read_training(checkpoint)
    else:
        snapshot = load_snapshot(checkpoint)
        config, weights, step = snapshot.config, snapshot.model, snapshot.step
        corpus, fingerprint, bytes_seen = snapshot.corpus, snapshot.fingerprint, snapshot.progress["bytes_seen"]
    parts: dict[str, int] = {}
    for name, tensor in weights.items():
        part = {"layers": "trunk"}.get(name.split(".")[0], name.split(".")[0])
        parts[part] = parts.get(part, 0) + tensor.numel()
    facts = {
        "checkpoint": name_of(checkpoint),
        "step": step,
        "bytes_seen": bytes_seen,  # a model alone does not say
        # One corpus, or a list of several with their weights: as the run has them.
        "corpus": name_of(corpus) if isinstance(corpus, str) else [name_of(one) for one in corpus],
        "corpus_fingerprint": fingerprint,
        "parameters": {**parts, "total": sum(parts.values())},
        "files": {file.name: file.stat().st_size for file in sorted(checkpoint.iterdir())},
        "config": config.model_dump(mode="json"),
    }
    if as_json:
        console.print_json(facts)
        return
    from bytelm.cli.inspect_view import run_view

    terminal = _results()
    terminal.print(run_view(facts), soft_wrap=not terminal.is_terminal)


def _results() -> Console:
    """A console on stdout. What its encoding does not have is written as an escape."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return Console(markup=False, highlight=False)


@contextlib.contextmanager
def _progress(verb: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line now and then elsewhere; both on stderr."""
    people = console.people()
    if people.is_terminal:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn(verb), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=people, transient=True) as progress:
            task = progress.add_task(verb, total=total)
            yield lambda raw_bytes: progress.advance(task, raw_bytes)
        return
    done, line_due_s = 0, time.monotonic() + _LINE_EVERY_S

    def advance(raw_bytes: int) -> None:
        nonlocal done, line_due_s
        done += raw_bytes
        if time.monotonic() >= line_due_s:
            line_due_s = time.monotonic() + _LINE_EVERY_S
            console.say(f"{verb}: {size(done)}" + (f" of {size(total)}, {done / total:.0%}" if total else ""))

    yield advance
