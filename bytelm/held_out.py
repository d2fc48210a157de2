"""Documents to evaluate on, with the type of each, from a split of a corpus or from one file; read again and again."""

import importlib.resources
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bytelm.checkpoint import read_corpus
from bytelm.data.kinds import KINDS, group_of, kind_of
from bytelm.data.shards import Corpus
from bytelm.errors import ConfigError, CorpusError, SourceError
from bytelm.evaluate import some_bytes
from bytelm.labels import document_type
from bytelm.shipped import is_shipped


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Documents of one place.

    Attributes:
        name: Where they come from, for the result.
        raw_bytes: Their bytes.
        documents: Gives them one by one, each with its kind (index in ``KINDS``).
    """

    name: str
    raw_bytes: int
    documents: Callable[[], Iterable[tuple[bytes, int]]]

    def some(self, limit_bytes: int | None, window_bytes: int) -> Iterator[tuple[bytes, str]]:
        """Documents, or pieces of them from evenly spread places, each with its type.

        Args:
            limit_bytes: Bytes at most; all where None.
            window_bytes: Of the model; see ``some_bytes``.
        """
        kind = 0

        def passing() -> Iterator[bytes]:
            nonlocal kind
            for data, kind in self.documents():  # noqa: B007  the kind of the document that a piece is cut from
                yield data

        limit = self.raw_bytes if limit_bytes is None else limit_bytes
        for data in some_bytes(passing(), self.raw_bytes, limit_bytes=limit, window_bytes=window_bytes):
            yield data, document_type(data, KINDS[kind], group_of(kind))


def of_file(path: Path) -> HeldOut:
    """One file as one document.

    Raises:
        SourceError: It cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}; give a file that exists") from error
    kind = kind_of(path.name.encode(), content)
    return HeldOut(name=str(path), raw_bytes=len(content), documents=lambda: [(content, kind)])


def of_own_modules() -> HeldOut:
    """The source of the command line that is running: code that no model that ships with bytelm was trained on."""
    folder = importlib.resources.files("bytelm.cli")
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(".py"))
    contents = [folder.joinpath(name).read_bytes() for name in names]
    kind = KINDS.index("python")
    return HeldOut(
        name="the modules of bytelm.cli",
        raw_bytes=sum(map(len, contents)),
        documents=lambda: ((content, kind) for content in contents),
    )


def of_corpus(corpus: Corpus, split: str) -> HeldOut:
    """A split of a corpus.

    Raises:
        CorpusError: The corpus has no such split.
    """
    corpus.shards(split)
    known = {name: index for index, name in enumerate(KINDS)}
    kinds = [known.get(name, 0) for name in corpus.kinds]
    return HeldOut(
        name=f"{corpus.place} ({split})",
        raw_bytes=corpus.raw_bytes(split),
        documents=lambda: ((piece.data, kinds[piece.kind]) for piece in corpus.pieces(split)),
    )


def open_held_out(checkpoint: Path, *, file: Path | None, corpus: str | Path | None, split: str) -> HeldOut:
    """What a person asked for: a file, a corpus, or else the corpus that the run was trained on.

    The corpus of a model that ships with bytelm is not here: it reads bytelm's own code.

    Raises:
        ConfigError: Both are given.
        SourceError: The file cannot be read.
        CorpusError: The corpus is not there, has no such split, or is another one than the run's.
    """
    if file is not None and corpus is not None:
        raise ConfigError("--file and --corpus are both given; one is scored, leave one out")
    if file is not None:
        return of_file(file)
    if corpus is None and is_shipped(checkpoint):
        return of_own_modules()
    return of_corpus(_corpus_of(checkpoint) if corpus is None else Corpus.open(corpus), split)


def _corpus_of(checkpoint: Path) -> Corpus:
    """The corpus that the run was trained on, if it is still there."""
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
