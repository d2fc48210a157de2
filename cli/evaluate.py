"""``bytelm eval``: what a model is worth on held-out bytes."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from bytelm.cli import console
from bytelm.cli.quantities import parse_size

if TYPE_CHECKING:
    from bytelm.data.shards import Corpus
    from bytelm.evaluate import Acceptance, BitsPerByte

_TASKS: Final = ("bpb", "acceptance")
_PROMPT_BYTES: Final = 128


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or of one of its checkpoints.")],
    task: Annotated[
        str,
        typer.Option("--task", help="bpb: bits per byte of every head; acceptance: bytes per decoding step; or both."),
    ] = "bpb",
    file: Annotated[Path | None, typer.Option("--file", help="Score this file, as one document.")] = None,
    corpus: Annotated[
        Path | None, typer.Option("--corpus", help="Score a split of this corpus. Default: the run's own corpus.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Which split of the corpus.")] = "validation",
    context: Annotated[
        int | None, typer.Option("--context", min=2, help="Ids of a window. Default: data.window_bytes of the run.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", help="Ids that a window advances. Default: half the context.")
    ] = None,
    limit: Annotated[
        str | None,
        typer.Option("--limit-bytes", metavar="SIZE", help="Score pieces from evenly spread places, in all this much."),
    ] = None,
    count: Annotated[int, typer.Option("--prompts", min=1, help="Held-out prompts that acceptance continues.")] = 16,
    device: Annotated[str, typer.Option("--device", help="torch device; auto takes CUDA where there is one.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Measure a model: bits per byte of every head, and what its heads are worth in self-speculative decoding.

    Every byte is scored once, from its raw bytes; the rule about its context is part of the result. Acceptance is
    measured in real greedy decoding from held-out prompts.
    """
    tasks = _tasks(task)
    from bytelm.checkpoint import find_checkpoint, load_model
    from bytelm.device import choose_device
    from bytelm.evaluate import acceptance, bits_per_byte, excerpts, some_bytes

    checkpoint = find_checkpoint(run)
    model, config = load_model(checkpoint)
    model.to(choose_device(device))
    window_bytes = config.data.window_bytes
    held_out = _open(checkpoint, file, corpus, split)
    scores: BitsPerByte | None = None
    accepted: Acceptance | None = None
    begun_s = time.monotonic()
    if "bpb" in tasks:
        limit_bytes = held_out.raw_bytes if limit is None else parse_size(limit)
        documents = some_bytes(
            held_out.documents(), held_out.raw_bytes, limit_bytes=limit_bytes, window_bytes=window_bytes
        )
        scores = bits_per_byte(model, documents, context_bytes=context or window_bytes, stride=stride)
    if "acceptance" in tasks:
        length = max(1, min(_PROMPT_BYTES, window_bytes // 2))
        pieces = excerpts(held_out.documents(), held_out.raw_bytes, count=count, length=length)
        prompts = [piece[:length] for piece in pieces][:count]
        accepted = acceptance(model, prompts, context_bytes=window_bytes)
    summary = {
        "checkpoint": str(checkpoint),
        "source": held_out.name,
        **_bits_facts(scores),
        **_acceptance_facts(accepted),
        "elapsed_s": round(time.monotonic() - begun_s, 3),
    }
    if as_json:
        console.print_json(summary)
    else:
        for line in _lines(scores, accepted):
            console.result(line)


@dataclass(frozen=True, kw_only=True)
class _HeldOut:
    """Documents that can be read again and again.

    Attributes:
        name: Where they come from, for the result.
        raw_bytes: Their bytes.
        documents: Gives them, one by one.
    """

    name: str
    raw_bytes: int
    documents: Callable[[], Iterable[bytes]]


def _tasks(text: str) -> list[str]:
    from bytelm.errors import ConfigError

    tasks = [task.strip() for task in text.split(",")]
    for task in tasks:
        if task not in _TASKS:
            raise ConfigError(f"unknown task {task!r}; known: {', '.join(_TASKS)}")
    return tasks


def _open(checkpoint: Path, file: Path | None, corpus: Path | None, split: str) -> _HeldOut:
    from bytelm.data.shards import Corpus
    from bytelm.errors import ConfigError, SourceError

    if file is not None and corpus is not None:
        raise ConfigError("--file and --corpus are both given; one is scored, leave one out")
    if file is not None:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise SourceError(f"cannot read {file}: {error.strerror}; give a file that exists") from error
        return _HeldOut(name=str(file), raw_bytes=len(content), documents=lambda: [content])
    source = _corpus_of(checkpoint) if corpus is None else Corpus.open(corpus)
    source.shards(split)  # refuses a split that is not there
    return _HeldOut(
        name=f"{source.path} ({split})",
        raw_bytes=source.raw_bytes(split),
        documents=lambda: source.documents(split),
    )


def _corpus_of(checkpoint: Path) -> "Corpus":
    """The corpus that the run was trained on, if it is still there."""
    from bytelm.checkpoint import read_corpus
    from bytelm.data.shards import Corpus
    from bytelm.errors import CorpusError

    path, fingerprint = read_corpus(checkpoint)
    remedy = "give --corpus or --file"
    if not isinstance(path, str):
        raise CorpusError(f"the run was trained on several corpora ({', '.join(path)}); {remedy}")
    try:
        corpus = Corpus.open(path)
    except CorpusError as error:
        raise CorpusError(f"the run's own corpus cannot be opened ({error}); {remedy}") from error
    if corpus.fingerprint != fingerprint:
        raise CorpusError(f"{path} holds another corpus now than the one that the run was trained on; {remedy}")
    return corpus


def _bits_facts(scores: "BitsPerByte | None") -> dict[str, Any]:
    if scores is None:
        return {}
    return {
        "bits_per_byte": scores.by_head[0],
        "bits_per_byte_by_head": list(scores.by_head),
        "scored_bytes": scores.scored_bytes,
        "documents": scores.documents,
        "context_bytes": scores.context_bytes,
        "stride": scores.stride,
        "rule": scores.rule,
    }


def _acceptance_facts(accepted: "Acceptance | None") -> dict[str, Any]:
    if accepted is None:
        return {}
    return {
        "bytes_per_step": accepted.bytes_per_step,
        "acceptance_by_head": list(accepted.by_head),
        "generated_bytes": accepted.generated_bytes,
        "steps": accepted.steps,
        "prompts": accepted.prompts,
    }


def _lines(scores: "BitsPerByte | None", accepted: "Acceptance | None") -> Iterator[str]:
    if scores is not None:
        yield f"bits per byte {scores.by_head[0]:.4f}, over {scores.scored_bytes:,} bytes"
        yield f"by head: {' '.join('–' if bits is None else f'{bits:.3f}' for bits in scores.by_head)}"
        yield f"rule: {scores.rule}"
    if accepted is not None:
        yield f"bytes per step {accepted.bytes_per_step:.3f}, over {accepted.prompts} prompts"
        yield f"acceptance by head: {' '.join('–' if share is None else f'{share:.3f}' for share in accepted.by_head)}"
