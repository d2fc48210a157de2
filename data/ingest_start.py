"""What an ingestion goes from: an empty folder, a corpus that it replaces or adds to, or its own unfinished work."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from bytelm.data.index import INDEX, Index
from bytelm.data.ingest_settings import IngestSettings, difference
from bytelm.data.journal import Journal
from bytelm.data.kinds import KINDS
from bytelm.data.shards import Corpus
from bytelm.data.storage import Folder
from bytelm.data.workplace import check_foreign, free_number, remove_ours
from bytelm.errors import ConfigError, CorpusError

Mode = Literal["new", "overwrite", "append"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What an ingestion goes from.

    Attributes:
        settings: What is asked for.
        mode: What happens to a corpus that is there.
        base: The corpus that is appended to.
        before: Digests of its documents.
        staying: Files that stay until the index is written.
        first_shard: Number of the first shard, above those that stay.
    """

    settings: IngestSettings
    mode: Mode
    base: Corpus | None
    before: bytes
    staying: frozenset[str]
    first_shard: int


def fresh(folder: Folder, settings: IngestSettings, asked: dict[str, Any], mode: Mode) -> Start:
    """Look at what is there, without changing it.

    Args:
        folder: The corpus that will be.
        settings: What is asked for.
        asked: Settings that a corpus which is appended to decides, None where nobody asked for any.
        mode: What to do with a corpus that is there.

    Raises:
        ConfigError: What was asked for is not what the corpus was made with.
        CorpusError: There is a corpus or an unfinished ingestion that is not to be replaced, or something else; or
            there is no corpus to append to, or its digests are damaged.
    """
    if mode != "overwrite" and Journal(folder).job() is not None:
        raise CorpusError(
            f"{folder.address} holds an unfinished ingestion; add --resume to the command that began it to go on, "
            "or --overwrite to begin again"
        )
    base = None
    if mode == "append":
        base = Corpus.open(folder)
        settings = _as_before(settings, base, asked)
    elif not folder.exists(INDEX):
        check_foreign(folder)
    elif mode == "new":
        raise CorpusError(
            f"{folder.address} already holds a corpus; choose another --out, or add --overwrite to replace it "
            "or --append to add to it"
        )
    staying = _staying(folder)
    return Start(
        settings=settings,
        mode=mode,
        base=base,
        before=b"" if base is None else base.read_digests(),
        staying=staying,
        first_shard=free_number(staying),
    )


def begin(folder: Folder, start: Start) -> None:
    """Remove what a killed ingestion left behind, and begin a journal.

    Raises:
        StorageError: The disk or the server refuses.
    """
    journal = Journal(folder)
    remove_ours(folder, keep=start.staying)
    journal.remove()
    journal.begin(
        {
            "mode": start.mode,
            "settings": start.settings.as_json(),
            "sources": start.settings.places(),
            "first_shard": start.first_shard,
            "base": None if start.base is None else start.base.to_text().decode("ascii"),
        }
    )


def resumed(folder: Folder, settings: IngestSettings, asked: dict[str, Any], mode: Mode | None) -> Start | None:
    """What the journal says that was begun; None if there is a corpus and no journal: everything is finished.

    Args:
        folder: The corpus that will be.
        settings: What is asked for; it must be what was asked for then.
        asked: As for ``fresh``.
        mode: What to do with a corpus that was there, None if nobody said so this time.

    Raises:
        ConfigError: A setting is another one now.
        CorpusError: Nothing was begun there, or the digests of the corpus that is appended to are damaged.
    """
    noted = Journal(folder).job()
    if noted is None:
        if folder.exists(INDEX):
            return None
        raise CorpusError(f"nothing to resume: {folder.address} holds no ingestion; leave --resume out to begin one")
    base = None
    if noted["base"] is not None:
        base = Corpus.of(Index.from_text(noted["base"].encode("ascii"), f"the journal in {folder.address}"), folder)
        settings = _as_before(settings, base, asked)
    changed = difference(
        {"mode": noted["mode"], "sources": noted["sources"], **noted["settings"]},
        {"mode": mode or noted["mode"], "sources": settings.places(), **settings.as_json()},
    )
    if changed:
        raise ConfigError(
            f"the ingestion into {folder.address} was begun with other settings: {changed}; "
            "resume it with the same ones, or begin again with --overwrite"
        )
    return Start(
        settings=settings,
        mode=noted["mode"],
        base=base,
        before=b"" if base is None else base.read_digests(),
        staying=_staying(folder),
        first_shard=noted["first_shard"],
    )


def _as_before(settings: IngestSettings, base: Corpus, asked: dict[str, Any]) -> IngestSettings:
    """The settings with what a corpus that is appended to decides."""
    if base.kinds != KINDS[: len(base.kinds)]:
        raise CorpusError(
            f"{base.folder.address} knows kinds of documents that this bytelm does not; "
            "append with the bytelm that made it"
        )
    undecided = base.split_rule["name"] == "all train"
    fraction = base.ingestions[-1].settings["validation_fraction"] if undecided else base.split_rule["fraction"]
    if undecided and asked["validation_fraction"] is not None:
        fraction = asked["validation_fraction"]
    decided = {"validation_fraction": fraction, "frame_bytes": base.frame_bytes}
    for name, value in decided.items():
        if asked[name] not in (None, value):
            raise ConfigError(
                f"{name} = {asked[name]}: the corpus at {base.folder.address} was made with {value}, "
                "which holds for what is appended, too; leave it out"
            )
    return replace(settings, **decided)


def _staying(folder: Folder) -> frozenset[str]:
    """Files of the corpus that is there; all that may be, if its index is damaged."""
    if not folder.exists(INDEX):
        return frozenset()
    try:
        return frozenset(files_of(Corpus.open(folder)))
    except CorpusError:
        return frozenset(folder.names())


def files_of(index: Index) -> set[str]:
    """Names of all files that an index names."""
    return {file.name for file in (*index.all_shards, *index.digests, *index.files)}
