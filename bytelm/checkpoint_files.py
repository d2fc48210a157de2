"""Checkpoints as files, without torch: where they lie, what their manifest says, settings and vocabulary.

``bytelm.checkpoint`` says what a checkpoint holds, and reads and writes its tensors. A decoder without torch reads the
file of the weights itself (``bytelm.engine.weights``), once ``verify`` has checked it.
"""

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import bytelm
from bytelm.errors import CheckpointError, ConfigError
from bytelm.files import flush_folder, refusals_named, write_file
from bytelm.model_shape import PATH_OF_CONFIG, ModelShape, read_shape
from bytelm.own_files import (
    ANYTHING,
    FINITE,
    FLAG,
    TEXT,
    WHOLE,
    Either,
    Fields,
    FormError,
    ListOf,
    Nullable,
    Number,
    Row,
    Schema,
    Text,
    faults_named,
    parse_json,
    parse_toml,
    read_small,
)
from bytelm.shipped import shipped_model
from bytelm.vocab import BYTE_VOCABULARY, BYTES, Vocab

if TYPE_CHECKING:
    from bytelm.config import RunConfig

FORMAT: Final = "bytelm checkpoint"
FORMAT_VERSION: Final = 2
FOLDER: Final = "checkpoints"
BEST: Final = "best"

MODEL: Final = "model.safetensors"
OPTIMIZER: Final = "optimizer.safetensors"
STATE: Final = "state.json"
VOCABULARY: Final = "vocabulary.json"
MANIFEST: Final = "manifest.json"
UNFINISHED: Final = ".part"

_NAME: Final = re.compile(r"step-(\d{8,18})")

_MANIFEST_BYTES: Final = 1 << 20
_CONFIG_BYTES: Final = 1 << 20
_VOCABULARY_BYTES: Final = 64 << 20
_STATE_BYTES: Final = 64 << 20
_ONE_OR_SEVERAL: Final = Either(TEXT, ListOf(TEXT, least=1))
_FILE: Final = Fields({"bytes": WHOLE, "sha256": TEXT})
_MANIFEST: Final = Fields(
    {
        "format": Text((FORMAT,)),
        "version": Number(1, FORMAT_VERSION, whole=True),
        "step": WHOLE,
        "files": Fields(others=_FILE),
    },
    others=ANYTHING,
)
_WITH_MAKER: Final = Fields(
    {"made_by": Fields({"corpus": _ONE_OR_SEVERAL, "corpus_fingerprint": _ONE_OR_SEVERAL}, others=ANYTHING)},
    others=ANYTHING,
)
_WINDOW: Final = Number(0, 1 << 53, whole=True)
_LOADER: Final = Fields(
    optional={
        "window": _WINDOW,
        "schedule": ListOf(Row((_WINDOW, ListOf(Either(TEXT, FINITE), least=1))), least=1),
        "positions": ListOf(_WINDOW),
    },
    others=ANYTHING,
)
_METER: Final = Fields(
    {"bits_K": ListOf(FINITE), "count_K": ListOf(WHOLE)},
    {"loss": FINITE, "steps": WHOLE, "bytes": WHOLE, "seconds": Number(0.0)},
)
_SAFETY: Final = Fields(
    optional={
        "skipped_steps": WHOLE,
        "in_a_row": WHOLE,
        "rollbacks": WHOLE,
        "learning_rate_ratio": Number(0.0, 1.0),
        "best_bits_per_byte": Nullable(FINITE),
        "validation_due": FLAG,
    }
)
_STATE: Final = Fields(
    {
        "step": WHOLE,
        "corpus": _ONE_OR_SEVERAL,
        "fingerprint": _ONE_OR_SEVERAL,
        "progress": Fields(
            optional={
                "bytes_seen": WHOLE,
                "elapsed_s": Number(0.0),
                "loader": _LOADER,
                "meter": _METER,
                "safety": _SAFETY,
            },
            others=ANYTHING,
        ),
    }
)
"""Of ``state.json``. What is needed to go on is asked for by those who go on: see ``bytelm.run_folder``."""


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint that the link ``best`` names, unverified; None where there is none."""
    link = run / FOLDER / BEST
    named = link.with_name(link.readlink().name) if link.is_symlink() else None
    return named if named is not None and named.is_dir() else None


def checkpoints(run: Path) -> list[Path]:
    """Folders of a run's checkpoints, oldest first, sound or not; empty where there is none."""
    folder = run / FOLDER
    if not folder.is_dir():
        return []
    found = [(step_of(path), path) for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return [path for _, path in sorted(found)]


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run, unverified; None where there is none."""
    return max(checkpoints(run), key=step_of, default=None)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means: itself, the one that the link ``best`` names, or the newest one of a run.

    A model that was exported is one too; the name of a model that ships with bytelm means that one.

    Raises:
        CheckpointError: The path does not exist, or is neither.
    """
    if path.name == BEST and (best := best_checkpoint(path.parent.parent)) is not None:
        return best
    if _NAME.fullmatch(path.name) and path.is_dir():
        return path
    newest = latest_checkpoint(path)
    if newest is not None:
        return newest
    if (path / MANIFEST).is_file():
        return path
    if not path.exists():
        if (shipped := shipped_model(path)) is not None:
            return shipped
        raise CheckpointError(f"{path} does not exist; give the folder of a run, or one of its checkpoints")
    if (path / PATH_OF_CONFIG).is_file():
        raise CheckpointError(f"{path} has no checkpoint yet; train it first: bytelm train --out {path}")
    raise CheckpointError(f"{path} is not the folder of a run (it has no {FOLDER}/step-…); bytelm train makes one")


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint so that it counts no longer, and keep it for whoever wants to look.

    Raises:
        StorageError: The disk refuses.
    """
    place = checkpoint.with_name(f"damaged-{checkpoint.name}")
    with refusals_named(place):
        if place.exists():
            shutil.rmtree(place)
        checkpoint.rename(place)
        flush_folder(place.parent)
    return place


def load_vocabulary(checkpoint: Path, config: "RunConfig") -> Vocab:
    """What the ids of a checkpoint stand for; ``load_weights`` or ``load_snapshot`` has verified the file.

    Args:
        checkpoint: Folder of one checkpoint.
        config: Its settings.

    Raises:
        CheckpointError: It is of an unknown version.
    """
    return _vocabulary(checkpoint, config.model.vocabulary)


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A checkpoint that can be decoded from, verified.

    Attributes:
        checkpoint: Its folder.
        shape: Of its model.
        vocabulary: What ids stand for.
        weights: File of the weights that are evaluated.
        digest: SHA-256 of that file.
    """

    checkpoint: Path
    shape: ModelShape
    vocabulary: Vocab
    weights: Path
    digest: str


def find_model(path: Path) -> ModelFiles:
    """What a decoder needs of a trained model, without torch.

    Args:
        path: Folder of a run, whose newest checkpoint is taken, or of one checkpoint; or the name of a shipped model.

    Raises:
        CheckpointError: No checkpoint is there, a file of it is missing or damaged, or the version is unknown.
    """
    checkpoint = find_checkpoint(path)
    verify(checkpoint, (MODEL, PATH_OF_CONFIG))
    tree = _config_tree(checkpoint)
    shape = read_shape(tree)
    if shape is None:
        config = _settings_of(tree, checkpoint)
        shape = ModelShape(trunk=config.model, heads=config.heads, window_bytes=config.data.window_bytes)
    return ModelFiles(
        checkpoint=checkpoint,
        shape=shape,
        vocabulary=_vocabulary(checkpoint, shape.trunk.vocabulary),
        weights=checkpoint / MODEL,
        digest=read_manifest(checkpoint)["files"][MODEL]["sha256"],
    )


def _vocabulary(checkpoint: Path, name: str) -> Vocab:
    if name == BYTE_VOCABULARY:
        return BYTES
    from bytelm.bpe import read_vocabulary

    return read_vocabulary(name, saved_vocabulary(checkpoint), checkpoint / VOCABULARY)


def read_corpus(path: Path) -> tuple[str | list[str], str | list[str]]:
    """Where the corpus of a run was, and its fingerprint; lists where there were several.

    Args:
        path: Folder of a run or of one checkpoint.

    Raises:
        CheckpointError: As ``load_model``.
    """
    _, corpus, fingerprint = read_training(find_checkpoint(Path(path)))
    return corpus, fingerprint


def read_training(checkpoint: Path) -> tuple[int, str | list[str], str | list[str]]:
    """How many steps a checkpoint was trained for, on which corpus or corpora, and their fingerprints.

    Args:
        checkpoint: Folder of one checkpoint, or of a model alone.

    Raises:
        CheckpointError: A file is missing or damaged, or the version is unknown.
    """
    verify(checkpoint, (PATH_OF_CONFIG,))
    return read_manifest(checkpoint)["step"], *read_maker(checkpoint)


def read_maker(folder: Path) -> tuple[str | list[str], str | list[str]]:
    """The corpus or corpora that the ``config.toml`` of a run or checkpoint names, and their fingerprints; unverified.

    Raises:
        CheckpointError: There is no such file, it is no TOML, or it names no corpus.
    """
    made_by = _config_tree(folder, _WITH_MAKER)["made_by"]
    return made_by["corpus"], made_by["corpus_fingerprint"]


def is_model_alone(checkpoint: Path) -> bool:
    """Whether a checkpoint is an exported model, without what a training needs to go on.

    Raises:
        CheckpointError: It has no manifest, or a damaged one, or the version is unknown.
    """
    with _unreadable_named(checkpoint):
        return OPTIMIZER not in read_manifest(checkpoint)["files"]


def read_run(run: Path) -> "tuple[RunConfig, str | list[str]]":
    """Settings of a run as its ``config.toml`` has them now, and where its corpus was, or several with weights.

    Raises:
        CheckpointError: There is no ``config.toml``, it is none, or it names no corpus.
        ConfigError: It holds something impossible.
    """
    tree = _config_tree(run, _WITH_MAKER)
    return _settings_of(tree, run), tree["made_by"]["corpus"]


def config_text(config: "RunConfig", *, corpus: str | list[str], fingerprint: str | list[str]) -> str:
    """Text of ``config.toml``, for a run and for each of its checkpoints."""
    return config.to_toml(bytelm=bytelm.__version__, corpus=corpus, corpus_fingerprint=fingerprint)


def write_manifest(folder: Path, step: int, names: tuple[str, ...]) -> None:
    """Write the manifest of a folder, as its last file, over the files that are named."""
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "bytelm": bytelm.__version__,
        "step": step,
        "files": {name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in names},
    }
    write_file(folder / MANIFEST, rendered({**manifest, "sha256": hashlib.sha256(rendered(manifest)).hexdigest()}))


def saved_vocabulary(checkpoint: Path) -> bytes:
    """What a checkpoint holds of its vocabulary; empty where ids are bytes."""
    path = checkpoint / VOCABULARY
    return _read_small(checkpoint, VOCABULARY, _VOCABULARY_BYTES) if path.is_file() else b""


def verify(checkpoint: Path, names: tuple[str, ...]) -> None:
    """Check the manifest, the presence and size of every file, and the checksums of those named.

    Raises:
        CheckpointError: One of them is missing or damaged, or the version is unknown.
    """
    with _unreadable_named(checkpoint):
        manifest = read_manifest(checkpoint)
        for name, facts in manifest["files"].items():
            path = checkpoint / name
            if not path.is_file():
                raise _damaged(checkpoint, f"{name} is missing")
            size = path.stat().st_size
            if size != facts["bytes"]:
                raise _damaged(checkpoint, f"{name} has {size} bytes, {facts['bytes']} were written")
        for name in (*names, *(name for name in manifest["files"] if name == VOCABULARY)):
            if name not in manifest["files"]:
                raise CheckpointError(
                    f"{checkpoint} holds a model alone, not the {name} that a training needs to go on; "
                    f"begin another run with --init-from {checkpoint}"
                )
            if _sha256(checkpoint / name) != manifest["files"][name]["sha256"]:
                raise _damaged(checkpoint, f"the contents of {name} are not those that were written")


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, without its own checksum.

    Raises:
        CheckpointError: It is missing or damaged, or its version is unknown.
    """
    path = checkpoint / MANIFEST
    if not path.is_file():
        raise _damaged(checkpoint, f"{MANIFEST} is missing")
    content = _read_small(checkpoint, MANIFEST, _MANIFEST_BYTES)
    try:
        manifest = parse_json(content, Fields({"version": ANYTHING, "sha256": TEXT}, others=ANYTHING))
        own_sum, version = manifest.pop("sha256"), manifest["version"]
        if manifest.get("format") == FORMAT and isinstance(version, int) and version > FORMAT_VERSION:
            raise CheckpointError(
                f"{checkpoint} has version {version} and this bytelm reads up to {FORMAT_VERSION}; install a newer "
                "bytelm"
            )
        # Rendering again must give the same bytes: so even a flip that leaves the meaning alone is noticed.
        whole = rendered({**manifest, "sha256": own_sum})
        if whole != content or hashlib.sha256(rendered(manifest)).hexdigest() != own_sum:
            raise _damaged(checkpoint, f"the contents of {MANIFEST} are not those that were written")
        _MANIFEST.check(manifest)
        for name in manifest["files"]:
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                raise FormError(f"{name!r} is no name of a file of the checkpoint", "files")
    except FormError as error:
        raise _damaged(checkpoint, f"{MANIFEST}: {error}") from error
    if _NAME.fullmatch(checkpoint.name) and manifest["step"] != step_of(checkpoint):
        raise _damaged(checkpoint, f"its {MANIFEST} is that of step {manifest['step']}")
    return manifest


@contextlib.contextmanager
def _unreadable_named(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot read {checkpoint}: {error.strerror}; check its permissions") from error


def _damaged(checkpoint: Path, reason: str) -> CheckpointError:
    if not _NAME.fullmatch(checkpoint.name):
        return CheckpointError(f"{checkpoint} is damaged: {reason}; export the model, or install bytelm, again")
    run = checkpoint.parent.parent
    older = [path for path in checkpoints(run) if step_of(path) < step_of(checkpoint)]
    remedy = f"an older one is {older[-1]}" if older else f"{run} has no older one: train again"
    return CheckpointError(f"{checkpoint} is damaged: {reason}; {remedy}")


def read_config(checkpoint: Path) -> "RunConfig":
    """The settings of a checkpoint that has been verified.

    Raises:
        CheckpointError: The file is no TOML.
        ConfigError: It holds something impossible.
    """
    return _settings_of(_config_tree(checkpoint), checkpoint)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What the trainer had counted, from a checkpoint that has been verified.

    Raises:
        CheckpointError: It is not what a trainer counts.
    """
    content = _read_small(checkpoint, STATE, _STATE_BYTES)
    try:
        return parse_json(content, _STATE)
    except FormError as error:
        raise _damaged(checkpoint, f"{STATE}: {error}") from error


def _config_tree(folder: Path, schema: Schema = ANYTHING) -> dict[str, Any]:
    """``config.toml`` in the folder of a run, a checkpoint or a model."""
    remedy = "copy it from the run's newest checkpoint; of a checkpoint, use another one"
    if not _NAME.fullmatch(folder.name):
        with faults_named(folder / PATH_OF_CONFIG, remedy):
            return parse_toml(read_small(folder / PATH_OF_CONFIG, remedy=remedy, limit_bytes=_CONFIG_BYTES), schema)
    try:
        return parse_toml(_read_small(folder, PATH_OF_CONFIG, _CONFIG_BYTES), schema)
    except FormError as error:
        raise _damaged(folder, f"{PATH_OF_CONFIG}: {error}") from error


def _settings_of(tree: dict[str, Any], folder: Path) -> "RunConfig":
    from bytelm.config import RunConfig

    settings = {name: value for name, value in tree.items() if name != "made_by"}
    try:
        return RunConfig.from_tree(settings)
    except ConfigError as error:
        raise ConfigError(f"{folder / PATH_OF_CONFIG}: {error}") from error


def _read_small(checkpoint: Path, name: str, limit_bytes: int) -> bytes:
    return read_small(checkpoint / name, remedy="use another checkpoint", limit_bytes=limit_bytes)


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint's folder."""
    name = _NAME.fullmatch(checkpoint.name)
    assert name is not None
    return int(name[1])


def rendered(value: Mapping[str, Any]) -> bytes:
    """JSON as the small files of a checkpoint hold it: equal values are equal bytes."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2, sort_keys=True).encode() + b"\n"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
