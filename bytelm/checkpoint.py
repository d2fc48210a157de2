"""Checkpoints: all of a run's state at one step, written whole or not at all, and verified before it is used.

    runs/a/checkpoints/step-00001000/
      model.safetensors      the weights that are evaluated: their average where one is kept
      optimizer.safetensors  the optimizer's state, the random generators, and the trained weights beside an average
      state.json             step, corpus, loader position and whatever else the trainer counts
      config.toml            the settings
      vocabulary.json        of a BPE baseline: its merges
      manifest.json          written last: version, size and SHA-256 of each of these files, and of itself

The folder is filled under another name, flushed to the disk and renamed, so that a folder with the right name is a
whole checkpoint; damage that comes later (a flipped bit, a truncated, missing or swapped file) fails a checksum.
Nothing is pickled: weights and state are plain tensors, the rest is JSON and TOML.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.overrides import TorchFunctionMode

import bytelm
from bytelm.bpe import read_vocabulary, saved_form
from bytelm.config import PATH_OF_CONFIG, RunConfig
from bytelm.errors import CheckpointError
from bytelm.files import flush_folder, refusals_named, write_file
from bytelm.model import ByteLM
from bytelm.shipped import shipped_model
from bytelm.vocab import Vocab

FORMAT: Final = "bytelm checkpoint"
FORMAT_VERSION: Final = 2
FOLDER: Final = "checkpoints"
BEST: Final = "best"

_MODEL: Final = "model.safetensors"
_OPTIMIZER: Final = "optimizer.safetensors"
_STATE: Final = "state.json"
_MANIFEST: Final = "manifest.json"
_VOCABULARY: Final = "vocabulary.json"
_FILES: Final = (_MODEL, _OPTIMIZER, _STATE, PATH_OF_CONFIG)
_NAME: Final = re.compile(r"step-(\d{8,})")
_UNFINISHED: Final = ".part"
_OTHER_TEXT_BYTES: Final = 1500
"""Of the manifest and the state together, about."""
_DTYPES: Final = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.uint8: "U8",
}
"""Names that safetensors gives them."""
_RANDOM: Final = "random."
_OPTIMIZER_STATE: Final = "optimizer."
_TRAINED: Final = "trained."


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All that a run needs to go on as if it had not stopped."""

    step: int
    """Optimizer steps done."""
    config: RunConfig
    corpus: str | list[str]
    """Where the corpus was, from any folder; or where several were, each with its weight."""
    fingerprint: str | list[str]
    """Which corpus it was, or which."""
    model: Mapping[str, Tensor]
    """Weights by name, as they are trained."""
    average: Mapping[str, Tensor] = field(default_factory=dict)
    """Their average by name; empty where none is kept. Where there is one, it is what ``load_model`` loads."""
    optimizer: Mapping[str, Tensor]
    """Optimizer state by name."""
    random: Mapping[str, Tensor]
    """States of the random generators by device, uint8."""
    vocabulary: bytes = b""
    """What ids stand for, as a file; empty where they are bytes."""
    progress: Mapping[str, Any]
    """What the trainer counts (bytes, seconds, loader position …), as JSON values."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The newest sound checkpoint of a run, and what was passed over to reach it."""

    checkpoint: Path
    snapshot: Snapshot
    damaged: tuple[tuple[Path, str], ...]
    """Newer checkpoints that are damaged, each with the reason, newest first."""


def save_checkpoint(run: Path, snapshot: Snapshot, *, keep: int, best: bool = False) -> Path:
    """Write a checkpoint and remove the oldest ones, but not the best.

    Args:
        run: Folder of the run; it must exist.
        snapshot: What to keep; tensors of any device.
        keep: Newest checkpoints that stay, at least 1, the one that is written included.
        best: Whether this is the best so far; the link ``best`` then names it.

    Returns:
        The checkpoint's folder.

    Raises:
        StorageError: The disk refuses; older checkpoints are as they were, and no part of this one stays.
    """
    final = run / FOLDER / f"step-{snapshot.step:08d}"
    beside = final.with_name(f".{final.name}{_UNFINISHED}")
    with refusals_named(final):
        final.parent.mkdir(exist_ok=True)
        for leftover in final.parent.glob(f".*{_UNFINISHED}"):  # of a run that was killed while it saved
            leftover.unlink() if leftover.is_symlink() else shutil.rmtree(leftover)
        beside.mkdir()
        try:
            _fill(beside, snapshot)
            if final.exists():  # the same step, made again because what stood here is damaged
                _remove(final)
            beside.rename(final)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        if best:
            link = final.with_name(f".{BEST}{_UNFINISHED}")
            link.unlink(missing_ok=True)
            link.symlink_to(final.name)
            link.replace(final.with_name(BEST))
        flush_folder(final.parent)
        kept = best_checkpoint(run)
        for old in [path for path in checkpoints(run) if path != final][: -(keep - 1) or None]:
            if old != kept:
                _remove(old)
    return final


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
    found = [(_step_of(path), path) for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return [path for _, path in sorted(found)]


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run, unverified; None where there is none."""
    return max(checkpoints(run), key=_step_of, default=None)


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
    if (path / _MANIFEST).is_file():
        return path
    if not path.exists():
        if (shipped := shipped_model(path)) is not None:
            return shipped
        raise CheckpointError(f"{path} does not exist; give the folder of a run, or one of its checkpoints")
    if (path / PATH_OF_CONFIG).is_file():
        raise CheckpointError(f"{path} has no checkpoint yet; train it first: bytelm train --out {path}")
    raise CheckpointError(f"{path} is not the folder of a run (it has no {FOLDER}/step-…); bytelm train makes one")


def find_newest_sound(run: Path, accept: Callable[[Snapshot], bool] = lambda _: True) -> Found | None:
    """The newest checkpoint of a run whose every byte is as it was written.

    Args:
        run: Folder of the run.
        accept: Decides whether a sound one will do; if none does, the newest sound one is taken.

    Returns:
        The checkpoint with its contents, and what was passed over; None where the run has no checkpoint at all.

    Raises:
        CheckpointError: The run has checkpoints and all of them are damaged; each is named.
    """
    damaged: list[tuple[Path, str]] = []
    newest: tuple[Path, Snapshot] | None = None
    for checkpoint in reversed(checkpoints(run)):
        try:
            snapshot = load_snapshot(checkpoint)
        except CheckpointError as error:
            damaged.append((checkpoint, str(error)))
            continue
        if accept(snapshot):
            return Found(checkpoint=checkpoint, snapshot=snapshot, damaged=tuple(damaged))
        newest = newest or (checkpoint, snapshot)
    if newest is not None:
        return Found(checkpoint=newest[0], snapshot=newest[1], damaged=tuple(damaged))
    if not damaged:
        return None
    reasons = "; ".join(reason for _, reason in damaged)
    raise CheckpointError(f"every checkpoint of {run} is damaged: {reasons}; start again with another --out")


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


def load_snapshot(checkpoint: Path) -> Snapshot:
    """Everything in a checkpoint, verified.

    Args:
        checkpoint: Folder of one checkpoint.

    Raises:
        CheckpointError: A file is missing, truncated, altered or of another checkpoint, or the version is unknown.
    """
    _verify(checkpoint, _FILES)
    state = json.loads((checkpoint / _STATE).read_bytes())
    evaluated = safetensors.torch.load_file(checkpoint / _MODEL)
    optimizer = safetensors.torch.load_file(checkpoint / _OPTIMIZER)
    trained = _with_prefix(_TRAINED, optimizer)
    return Snapshot(
        step=state["step"],
        config=_read_config(checkpoint),
        corpus=state["corpus"],
        fingerprint=state["fingerprint"],
        model=trained or evaluated,
        average=evaluated if trained else {},
        vocabulary=_saved_vocabulary(checkpoint),
        optimizer=_with_prefix(_OPTIMIZER_STATE, optimizer),
        random=_with_prefix(_RANDOM, optimizer),
        progress=state["progress"],
    )


def load_model(path: Path) -> tuple[ByteLM, RunConfig]:
    """A trained model, on the CPU and in evaluation mode, with the settings that it was trained with.

    Only what is used is read: of the optimizer's state, just presence and size are checked.

    Args:
        path: Folder of a run, whose newest checkpoint is taken, or of one checkpoint.

    Raises:
        CheckpointError: No checkpoint is there, a file of it is missing or damaged, or the version is unknown.
    """
    checkpoint = find_checkpoint(Path(path))
    config, weights = load_weights(checkpoint)
    with _Undrawn():
        model = ByteLM(config.model, config.heads, vocabulary=load_vocabulary(checkpoint, config))
    model.load_state_dict(weights, assign=True)
    return model.eval(), config


def load_weights(checkpoint: Path) -> tuple[RunConfig, dict[str, Tensor]]:
    """The settings of a checkpoint and the weights that are evaluated, by name, on the CPU.

    Args:
        checkpoint: Folder of one checkpoint.

    Raises:
        CheckpointError: A file is missing or damaged, or the version is unknown.
    """
    _verify(checkpoint, (_MODEL, PATH_OF_CONFIG))
    weights = safetensors.torch.load_file(checkpoint / _MODEL)
    return _read_config(checkpoint), {name: weight.float() for name, weight in weights.items()}


def write_model(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: RunConfig,
    *,
    step: int,
    corpus: str | list[str],
    fingerprint: str | list[str],
    vocabulary: Vocab,
) -> None:
    """Fill a folder with a model alone; ``load_weights`` reads it.

    Args:
        folder: Empty.
        weights: By name, in the dtype that the file shall have.
        config: Of the run.
        step: At which it has these weights.
        corpus: See ``Snapshot``.
        fingerprint: See ``Snapshot``.
        vocabulary: What ids stand for.

    Raises:
        OSError: The disk refuses.
    """
    _write_tensors(folder / _MODEL, weights)
    write_file(folder / PATH_OF_CONFIG, config_text(config, corpus=corpus, fingerprint=fingerprint).encode())
    # The library makes files that nobody but their owner can read, and this one is to be given away.
    (folder / _MODEL).chmod(stat.S_IMODE((folder / PATH_OF_CONFIG).stat().st_mode))
    content = saved_form(vocabulary)
    if content:
        write_file(folder / _VOCABULARY, content)
    _write_manifest(folder, step, (_MODEL, PATH_OF_CONFIG, *((_VOCABULARY,) if content else ())))


def load_vocabulary(checkpoint: Path, config: RunConfig) -> Vocab:
    """What the ids of a checkpoint stand for; ``load_weights`` or ``load_snapshot`` has verified the file.

    Args:
        checkpoint: Folder of one checkpoint.
        config: Its settings.

    Raises:
        CheckpointError: It is of an unknown version.
    """
    return read_vocabulary(config.model.vocabulary, _saved_vocabulary(checkpoint), checkpoint / _VOCABULARY)


def checkpoint_bytes(snapshot: Snapshot) -> int:
    """Bytes that a checkpoint of a snapshot would take, to within its three small text files.

    Args:
        snapshot: Of its tensors only shapes and dtypes are looked at.
    """
    text = config_text(snapshot.config, corpus=snapshot.corpus, fingerprint=snapshot.fingerprint)
    return (
        sum(map(_tensor_file_bytes, _tensors_by_file(snapshot).values()))
        + len(text)
        + len(snapshot.vocabulary)
        + _OTHER_TEXT_BYTES
    )


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
    _verify(checkpoint, (PATH_OF_CONFIG,))
    made_by = tomllib.loads((checkpoint / PATH_OF_CONFIG).read_text(encoding="utf-8"))["made_by"]
    return _read_manifest(checkpoint)["step"], made_by["corpus"], made_by["corpus_fingerprint"]


def is_model_alone(checkpoint: Path) -> bool:
    """Whether a checkpoint is an exported model, without what a training needs to go on.

    Raises:
        CheckpointError: It has no manifest, or a damaged one, or the version is unknown.
    """
    with _unreadable_named(checkpoint):
        return _OPTIMIZER not in _read_manifest(checkpoint)["files"]


def read_run(run: Path) -> tuple[RunConfig, str | list[str]]:
    """Settings of a run as its ``config.toml`` has them now, and where its corpus was, or several with weights.

    Raises:
        CheckpointError: There is no ``config.toml``, or it names no corpus.
        ConfigError: It holds something impossible.
    """
    path = run / PATH_OF_CONFIG
    try:
        text = path.read_text(encoding="utf-8")
        config = RunConfig.from_toml(text)
        return config, tomllib.loads(text)["made_by"]["corpus"]
    except (OSError, UnicodeDecodeError, KeyError) as error:
        raise CheckpointError(
            f"{path} cannot be read or names no corpus ({error}); copy it from the run's newest checkpoint"
        ) from error


def config_text(config: RunConfig, *, corpus: str | list[str], fingerprint: str | list[str]) -> str:
    """Text of ``config.toml``, for a run and for each of its checkpoints."""
    return config.to_toml(bytelm=bytelm.__version__, corpus=corpus, corpus_fingerprint=fingerprint)


class _Undrawn(TorchFunctionMode):
    """Inside, ``normal_`` draws nothing: weights that are about to be replaced cost no time and no random numbers.

    The meta device would do the same, but its first use imports a symbolic algebra system, for a second.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        return args[0] if func is Tensor.normal_ else func(*args, **(kwargs or {}))


def _fill(folder: Path, snapshot: Snapshot) -> None:
    state = {
        "step": snapshot.step,
        "corpus": snapshot.corpus,
        "fingerprint": snapshot.fingerprint,
        "progress": dict(snapshot.progress),
    }
    text = config_text(snapshot.config, corpus=snapshot.corpus, fingerprint=snapshot.fingerprint)
    for name, tensors in _tensors_by_file(snapshot).items():
        _write_tensors(folder / name, tensors)
    write_file(folder / _STATE, _rendered(state))
    write_file(folder / PATH_OF_CONFIG, text.encode())
    names = _FILES
    if snapshot.vocabulary:
        write_file(folder / _VOCABULARY, snapshot.vocabulary)
        names = (*_FILES, _VOCABULARY)
    _write_manifest(folder, snapshot.step, names)


def _write_manifest(folder: Path, step: int, names: tuple[str, ...]) -> None:
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "bytelm": bytelm.__version__,
        "step": step,
        "files": {name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in names},
    }
    write_file(folder / _MANIFEST, _rendered({**manifest, "sha256": hashlib.sha256(_rendered(manifest)).hexdigest()}))


def _saved_vocabulary(checkpoint: Path) -> bytes:
    path = checkpoint / _VOCABULARY
    return path.read_bytes() if path.is_file() else b""


def _tensors_by_file(snapshot: Snapshot) -> dict[str, Mapping[str, Tensor]]:
    beside = {_OPTIMIZER_STATE + name: tensor for name, tensor in snapshot.optimizer.items()}
    beside |= {_RANDOM + name: tensor for name, tensor in snapshot.random.items()}
    if snapshot.average:
        beside |= {_TRAINED + name: tensor for name, tensor in snapshot.model.items()}
    return {_MODEL: snapshot.average or snapshot.model, _OPTIMIZER: beside}


def _tensor_file_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Size of a safetensors file: eight bytes, a JSON header padded to a multiple of eight, the tensors."""
    header, end = {}, 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + end


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with _disk_errors_of_safetensors():
        safetensors.torch.save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def _disk_errors_of_safetensors() -> Iterator[None]:
    # The library reports a full disk as its own error, with the number of the system's error in the text alone.
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _verify(checkpoint: Path, names: tuple[str, ...]) -> None:
    """Check the manifest, the presence and size of every file, and the checksums of those named."""
    with _unreadable_named(checkpoint):
        manifest = _read_manifest(checkpoint)
        for name, facts in manifest["files"].items():
            path = checkpoint / name
            if not path.is_file():
                raise _damaged(checkpoint, f"{name} is missing")
            size = path.stat().st_size
            if size != facts["bytes"]:
                raise _damaged(checkpoint, f"{name} has {size} bytes, {facts['bytes']} were written")
        for name in (*names, *(name for name in manifest["files"] if name == _VOCABULARY)):
            if name not in manifest["files"]:
                raise CheckpointError(
                    f"{checkpoint} holds a model alone, not the {name} that a training needs to go on; "
                    f"begin another run with --init-from {checkpoint}"
                )
            if _sha256(checkpoint / name) != manifest["files"][name]["sha256"]:
                raise _damaged(checkpoint, f"the contents of {name} are not those that were written")


def _read_manifest(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / _MANIFEST
    if not path.is_file():
        raise _damaged(checkpoint, f"{_MANIFEST} is missing")
    content = path.read_bytes()
    try:
        manifest = json.loads(content)
        own_sum = manifest.pop("sha256")
        version = manifest["version"]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(checkpoint, f"{_MANIFEST} is not one") from error
    if manifest.get("format") == FORMAT and isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{checkpoint} has version {version} and this bytelm reads up to {FORMAT_VERSION}; install a newer bytelm"
        )
    # Rendering again must give the same bytes: so even a flip that leaves the meaning alone is noticed.
    whole = _rendered({**manifest, "sha256": own_sum})
    if whole != content or hashlib.sha256(_rendered(manifest)).hexdigest() != own_sum:
        raise _damaged(checkpoint, f"the contents of {_MANIFEST} are not those that were written")
    if _NAME.fullmatch(checkpoint.name) and manifest["step"] != _step_of(checkpoint):
        raise _damaged(checkpoint, f"its {_MANIFEST} is that of step {manifest['step']}")
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
    older = [path for path in checkpoints(run) if _step_of(path) < _step_of(checkpoint)]
    remedy = f"an older one is {older[-1]}" if older else f"{run} has no older one: train again"
    return CheckpointError(f"{checkpoint} is damaged: {reason}; {remedy}")


def _read_config(checkpoint: Path) -> RunConfig:
    return RunConfig.from_toml((checkpoint / PATH_OF_CONFIG).read_text(encoding="utf-8"))


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _step_of(checkpoint: Path) -> int:
    name = _NAME.fullmatch(checkpoint.name)
    assert name is not None
    return int(name[1])


def _remove(checkpoint: Path) -> None:
    # Renamed first, so that no half of it can be taken for a checkpoint.
    gone = checkpoint.with_name(f".{checkpoint.name}-old{_UNFINISHED}")
    checkpoint.rename(gone)
    shutil.rmtree(gone)


def _rendered(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2, sort_keys=True).encode() + b"\n"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
