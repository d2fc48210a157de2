"""The folder of a run: who may train in it, what it may be taken up with, and from which checkpoint.

Everything that can be refused is refused here before the folder is touched. A lock keeps a second training off it.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

from bytelm.checkpoint import (
    Found,
    check_resumable,
    checkpoints,
    config_text,
    find_newest_sound,
    load_snapshot,
    set_aside,
)
from bytelm.config import PATH_OF_CONFIG, ModelConfig, RunConfig
from bytelm.corpora import Corpora
from bytelm.errors import CheckpointError, StorageError
from bytelm.files import clear_parts, is_part, locked, refusals_named, write_file
from bytelm.ranks import Ranks

PATH_OF_LOCK: Final = ".train.lock"
RECORDS_AFTER_SAVING: Final = ("rollback",)
"""Kinds of records that are logged behind the checkpoint of their own step."""

Resume = Literal["never", "auto", "require"]

_KEPT_SETTINGS: Final = (
    *(("model", key) for key in ModelConfig.model_fields),
    *(("heads", key) for key in ("family", "count", "keep_parameters_equal")),
    ("data", "window_bytes"),
    ("data", "packing"),
    ("train", "seed"),
    ("train", "optimizer"),
    ("train", "frozen"),
)
"""What a run cannot change: the shape of its weights, the order of its windows, and what is kept of the gradients."""


def find_together(ranks: Ranks, find: Callable[[], Found | None]) -> Found | None:
    """What rank 0 finds, read by all; only rank 0 knows what was passed over.

    Raises:
        CheckpointError: From ``find``, or another rank cannot read it.
    """
    found = None
    with ranks.agreed():
        if ranks.is_first:
            found = find()
    checkpoint = ranks.first(None if found is None else found.checkpoint)
    with ranks.agreed():
        if not ranks.is_first and checkpoint is not None:
            found = Found(checkpoint=checkpoint, snapshot=load_snapshot(checkpoint), damaged=())
    return found


def checkpoint_to_resume(run: Path, resume: Resume) -> Found | None:
    """The checkpoint that a run goes on from; None where it begins.

    Raises:
        CheckpointError: There is one and ``never`` was asked for, or none and ``require``, or all are damaged.
    """
    saved = checkpoints(run)
    if saved and resume == "never":
        raise CheckpointError(
            f"{run} already holds a run, saved up to {saved[-1].name}; "
            "go on with it: --resume auto, or choose another --out"
        )
    if not saved and resume == "require":
        raise CheckpointError(f"{run} has no checkpoint to go on from; start it with --resume auto")
    return find_newest_sound(run)


def check_same_run(found: Found, config: RunConfig, corpora: Corpora) -> None:
    """Refuse settings and corpora that a checkpoint cannot go on with.

    Raises:
        CheckpointError: With what differs.
    """
    saved = found.snapshot
    check_resumable(found.checkpoint, saved)
    if corpora.fingerprint != saved.fingerprint:
        raise CheckpointError(
            f"{found.checkpoint} was trained on another corpus (fingerprint {_shown(saved.fingerprint)}, and "
            f"{_listed(corpora.place)} has {_shown(corpora.fingerprint)}); give --corpus "
            f"{' --corpus '.join(_several(saved.corpus))}, or start another run with another --out"
        )
    for section, key in _KEPT_SETTINGS:
        before, now = (getattr(getattr(settings, section), key) for settings in (saved.config, config))
        if before != now:
            raise CheckpointError(
                f"{found.checkpoint} has {section}.{key} = {before}, and {now} was asked for; a run keeps this "
                "setting: leave it out, or start another run with another --out"
            )
    begun_with, asked = saved.config.train.init_from, config.train.init_from
    if asked is not None and asked != begun_with and not _names(asked, begun_with):
        raise CheckpointError(
            f"{found.checkpoint} is of a run that began with {begun_with or 'fresh weights'}, and {asked} was asked "
            "for; leave --init-from out, or start another run with another --out"
        )


def begun_with_checkpoint(config: RunConfig, checkpoint: str | None) -> RunConfig:
    """The same settings with the checkpoint that the run began with, as it was found then."""
    return config.model_copy(update={"train": config.train.model_copy(update={"init_from": checkpoint})})


def _names(asked: str, checkpoint: str | None) -> bool:
    """Whether a run, or a checkpoint of it, is that of a checkpoint; neither needs to be there any more."""
    if checkpoint is None:
        return False
    run, path = Path(checkpoint).parent.parent, Path(asked).resolve()
    return run in (path, path.parent.parent)


def _several(one_or_more: str | list[str]) -> list[str]:
    return [one_or_more] if isinstance(one_or_more, str) else one_or_more


def _listed(places: str | list[str]) -> str:
    return ", ".join(_several(places))


def _shown(fingerprints: str | list[str]) -> str:
    return ", ".join(f"{fingerprint[:12]}…" for fingerprint in _several(fingerprints))


def check_folder(run: Path, found: Found | None) -> None:
    """Refuse a folder that holds something else.

    Raises:
        StorageError: It is a file, or not empty and no run.
    """
    if run.exists() and not run.is_dir():
        raise StorageError(f"{run} is a file; choose another --out")
    if found is None and run.is_dir() and not (run / PATH_OF_CONFIG).exists():
        with refusals_named(run):
            names = [path.name for path in run.iterdir()]
        foreign = sorted(name for name in names if name != PATH_OF_LOCK and not is_part(name, PATH_OF_CONFIG))
        if foreign:
            raise StorageError(
                f"{run} is not empty and is no run of bytelm (it holds {foreign[0]}); choose another --out"
            )


def sole_training(run: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of a run.

    Raises:
        CheckpointError: Another process holds it.
    """
    return locked(
        run / PATH_OF_LOCK,
        lambda holder: CheckpointError(
            f"{run} is being trained by {holder}; wait until it has finished, or choose another --out"
        ),
    )


@contextlib.contextmanager
def begin_folder(run: Path) -> Iterator[None]:
    """Make the folder of a run and hold its lock."""
    with refusals_named(run):
        run.mkdir(parents=True, exist_ok=True)
    with sole_training(run):
        if (run / PATH_OF_CONFIG).exists():
            raise CheckpointError(f"another training has just begun in {run}; choose another --out")
        yield


def prepare_folder(run: Path, config: RunConfig, corpora: Corpora, found: Found | None) -> tuple[str, ...]:
    """Write the settings, set damaged checkpoints aside, and clear away what killed processes have left half written.

    Returns:
        A line for each of these.
    """
    with refusals_named(run):
        for folder in (run, *(path for path in run.iterdir() if path.is_dir() and not path.is_symlink())):
            clear_parts(folder)
    text = config_text(config, corpus=corpora.place, fingerprint=corpora.fingerprint)
    write_file(run / PATH_OF_CONFIG, text.encode())
    damaged = () if found is None else found.damaged
    return tuple(f"{reason} (renamed to {set_aside(checkpoint).name})" for checkpoint, reason in damaged)


def made_again(found: Found) -> tuple[str, ...]:
    """Kinds of records of a checkpoint's own step that do not count from there on."""
    due = found.snapshot.progress.get("safety", {}).get("validation_due", False)
    return (*RECORDS_AFTER_SAVING, "validation") if due else RECORDS_AFTER_SAVING
