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
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bytelm.bpe import saved_form
from bytelm.checkpoint_files import (
    BEST,
    FOLDER,
    FORMAT,
    FORMAT_VERSION,
    MODEL,
    OPTIMIZER,
    STATE,
    UNFINISHED,
    VOCABULARY,
    best_checkpoint,
    checkpoints,
    config_text,
    find_checkpoint,
    is_model_alone,
    latest_checkpoint,
    load_vocabulary,
    read_config,
    read_corpus,
    read_run,
    read_state,
    read_training,
    rendered,
    saved_vocabulary,
    set_aside,
    verify,
    write_manifest,
)
from bytelm.config import PATH_OF_CONFIG, RunConfig
from bytelm.engine.weights import weight_problem, weights_of
from bytelm.errors import CheckpointError, weight_not_finite
from bytelm.files import flush_folder, refusals_named, write_file
from bytelm.model import ByteLM
from bytelm.vocab import Vocab

__all__ = [
    "BEST",
    "FOLDER",
    "FORMAT",
    "FORMAT_VERSION",
    "Found",
    "Snapshot",
    "best_checkpoint",
    "check_resumable",
    "checkpoint_bytes",
    "checkpoints",
    "config_text",
    "find_checkpoint",
    "find_newest_sound",
    "is_model_alone",
    "latest_checkpoint",
    "load_model",
    "load_snapshot",
    "load_vocabulary",
    "load_weights",
    "read_corpus",
    "read_run",
    "read_training",
    "save_checkpoint",
    "set_aside",
    "write_model",
]

_FILES: Final = (MODEL, OPTIMIZER, STATE, PATH_OF_CONFIG)
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
_ANOTHER: Final = "take the files of one checkpoint, or use another one"
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
    beside = final.with_name(f".{final.name}{UNFINISHED}")
    with refusals_named(final):
        final.parent.mkdir(exist_ok=True)
        for leftover in final.parent.glob(f".*{UNFINISHED}"):  # of a run that was killed while it saved
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
            link = final.with_name(f".{BEST}{UNFINISHED}")
            link.unlink(missing_ok=True)
            link.symlink_to(final.name)
            place = final.with_name(BEST)
            if place.is_dir() and not place.is_symlink():  # of a run that was copied without its links
                _remove(place)
            link.replace(place)
        flush_folder(final.parent)
        kept = best_checkpoint(run)
        for old in [path for path in checkpoints(run) if path != final][: -(keep - 1) or None]:
            if old != kept:
                _remove(old)
    return final


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


def load_snapshot(checkpoint: Path) -> Snapshot:
    """Everything in a checkpoint, verified.

    Args:
        checkpoint: Folder of one checkpoint.

    Raises:
        CheckpointError: A file is missing, truncated, altered or of another checkpoint, or the version is unknown.
    """
    verify(checkpoint, _FILES)
    state, config = read_state(checkpoint), read_config(checkpoint)
    evaluated = _read_weights(checkpoint / MODEL, config)
    optimizer = _read_tensors(checkpoint / OPTIMIZER)
    trained = _with_prefix(_TRAINED, optimizer)
    if trained:
        _check_shapes(checkpoint / OPTIMIZER, trained, config)
    return Snapshot(
        step=state["step"],
        config=config,
        corpus=state["corpus"],
        fingerprint=state["fingerprint"],
        model=trained or evaluated,
        average=evaluated if trained else {},
        vocabulary=saved_vocabulary(checkpoint),
        optimizer=_with_prefix(_OPTIMIZER_STATE, optimizer),
        random=_with_prefix(_RANDOM, optimizer),
        progress=state["progress"],
    )


def check_resumable(checkpoint: Path, snapshot: Snapshot) -> None:
    """Refuse a snapshot that a training cannot go on from.

    Args:
        checkpoint: Folder that the snapshot was loaded from, for the error message.
        snapshot: Each of its values is what it has to be, as far as it is there.

    Raises:
        CheckpointError: Something is missing, or of another shape than this model and this machine have.
    """
    progress, heads, state = snapshot.progress, snapshot.config.heads.count, checkpoint / STATE
    for name in ("bytes_seen", "elapsed_s", "loader", "meter"):
        if name not in progress:
            raise CheckpointError(f"{state}: progress.{name} is missing, so that no training can go on; {_ANOTHER}")
    for name in ("window", "schedule") if isinstance(snapshot.corpus, list) else ("window",):
        if name not in progress["loader"]:
            raise CheckpointError(
                f"{state}: progress.loader.{name} is missing, so that no training can go on; {_ANOTHER}"
            )
    for name in ("bits_K", "count_K"):
        if len(progress["meter"][name]) != heads:
            raise CheckpointError(
                f"{state}: progress.meter.{name} has {len(progress['meter'][name])} values, and the model {heads} "
                f"heads; {_ANOTHER}"
            )
    ours, theirs = torch.get_rng_state(), snapshot.random.get("cpu")
    if theirs is None or theirs.dtype != ours.dtype or theirs.shape != ours.shape:
        raise CheckpointError(f"{checkpoint / OPTIMIZER} holds no state of torch's random generator; {_ANOTHER}")


def load_model(path: Path) -> tuple[ByteLM, RunConfig]:
    """A trained model, on the CPU and in evaluation mode, with the settings that it was trained with.

    Only what is used is read: of the optimizer's state, just presence and size are checked.

    Args:
        path: Folder of a run, whose newest checkpoint is taken, or of one checkpoint.

    Raises:
        CheckpointError: No checkpoint is there, a file of it is missing or damaged, the version is unknown, or a weight
            is not finite.
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
        CheckpointError: A file is missing or damaged, the version is unknown, or a weight is not finite.
    """
    verify(checkpoint, (MODEL, PATH_OF_CONFIG))
    config = read_config(checkpoint)
    weights = _read_weights(checkpoint / MODEL, config)
    for name, weight in weights.items():
        if not bool(weight.isfinite().all()):
            raise weight_not_finite(str(checkpoint / MODEL), name)
    return config, {name: weight.float() for name, weight in weights.items()}


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
    _write_tensors(folder / MODEL, weights)
    write_file(folder / PATH_OF_CONFIG, config_text(config, corpus=corpus, fingerprint=fingerprint).encode())
    # The library makes files that nobody but their owner can read, and this one is to be given away.
    (folder / MODEL).chmod(stat.S_IMODE((folder / PATH_OF_CONFIG).stat().st_mode))
    content = saved_form(vocabulary)
    if content:
        write_file(folder / VOCABULARY, content)
    write_manifest(folder, step, (MODEL, PATH_OF_CONFIG, *((VOCABULARY,) if content else ())))


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
    write_file(folder / STATE, rendered(state))
    write_file(folder / PATH_OF_CONFIG, text.encode())
    names = _FILES
    if snapshot.vocabulary:
        write_file(folder / VOCABULARY, snapshot.vocabulary)
        names = (*_FILES, VOCABULARY)
    write_manifest(folder, snapshot.step, names)


def _tensors_by_file(snapshot: Snapshot) -> dict[str, Mapping[str, Tensor]]:
    beside = {_OPTIMIZER_STATE + name: tensor for name, tensor in snapshot.optimizer.items()}
    beside |= {_RANDOM + name: tensor for name, tensor in snapshot.random.items()}
    if snapshot.average:
        beside |= {_TRAINED + name: tensor for name, tensor in snapshot.model.items()}
    return {MODEL: snapshot.average or snapshot.model, OPTIMIZER: beside}


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


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file whose checksum has been verified."""
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:  # a dtype that torch has not, too
        raise CheckpointError(f"{path} is no safetensors file that can be read ({error}); {_ANOTHER}") from error


def _read_weights(path: Path, config: RunConfig) -> dict[str, Tensor]:
    """The weights of a file, which are those that the settings name, in their shapes."""
    weights = _read_tensors(path)
    _check_shapes(path, weights, config)
    return weights


def _check_shapes(path: Path, weights: Mapping[str, Tensor], config: RunConfig) -> None:
    problem = weight_problem(
        ((name, weight.shape) for name, weight in weights.items()), weights_of(config.model, config.heads)
    )
    if problem:
        raise CheckpointError(f"{path} does not fit its {PATH_OF_CONFIG}: {problem}; {_ANOTHER}")
    for name, weight in weights.items():
        if not weight.dtype.is_floating_point:
            raise CheckpointError(f"{path}: the numbers of {name} are {weight.dtype}, and weights are not; {_ANOTHER}")


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _remove(checkpoint: Path) -> None:
    # Renamed first, so that no half of it can be taken for a checkpoint.
    gone = checkpoint.with_name(f".{checkpoint.name}-old{UNFINISHED}")
    checkpoint.rename(gone)
    shutil.rmtree(gone)
