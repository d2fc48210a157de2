"""What the logs of runs tell, ready to be drawn: values over bytes, seconds or operations.

Logs of older versions hold less. What can be found out in another way is (operations from the settings), the rest is
left out; a value that is not there is None and never a zero.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import torch

from bytelm.checkpoint_files import read_config, read_maker
from bytelm.config import RunConfig
from bytelm.errors import CheckpointError, ConfigError
from bytelm.fine_tuning import freeze
from bytelm.model import ByteLM
from bytelm.run_log import read_log

Axis = Literal["bytes", "seconds", "operations"]
Points = list[tuple[float, float]]

_MOST_POINTS: Final = 300


@dataclass(frozen=True)
class Data:
    """What a run learnt from. Two are equal where their bytes are, wherever they lay.

    Attributes:
        fingerprints: Fingerprint of each corpus, in order.
        weights: Weight of each corpus in the mixture, where there are several.
        places: Place of each corpus, with its weight.
    """

    fingerprints: tuple[str, ...]
    weights: tuple[str, ...]
    places: tuple[str, ...] = field(compare=False)

    def __str__(self) -> str:
        """For people."""
        pairs = zip(self.places, self.fingerprints, strict=False)
        return ", ".join(f"{place} (fingerprint {fingerprint[:12]})" for place, fingerprint in pairs)


@dataclass(frozen=True, kw_only=True)
class History:
    """A run so far.

    Attributes:
        name: Short, and another for each run of a page.
        run: Its folder.
        config: Its settings; None where they cannot be read.
        corpus: The corpora that it learnt from, by place and fingerprint; None where they cannot be read.
        parameters: Of the model; None with them.
        flops_per_byte: Of the model in training; None with them.
        steps: Records of logged steps, oldest first.
        validations: Records of validations, oldest first.
    """

    name: str
    run: Path
    config: RunConfig | None
    corpus: Data | None
    parameters: int | None
    flops_per_byte: float | None
    steps: tuple[Mapping[str, Any], ...]
    validations: tuple[Mapping[str, Any], ...]

    @property
    def heads(self) -> int:
        """K."""
        return max((len(record["bits_per_byte_by_head"]) for record in (*self.steps, *self.validations)), default=0)

    @property
    def last(self) -> Mapping[str, Any]:
        """The last record of a step or a validation."""
        return max((*self.steps, *self.validations), key=lambda record: record["step"])

    def place(self, record: Mapping[str, Any], axis: Axis) -> float | None:
        """Where a record stands on an axis."""
        if axis == "bytes":
            return record.get("bytes_seen")
        if axis == "seconds":
            return record.get("elapsed_s")
        if record.get("flops") is not None:
            return record["flops"]
        seen = record.get("bytes_seen")
        return None if seen is None or self.flops_per_byte is None else seen * self.flops_per_byte

    def points(
        self, records: Iterable[Mapping[str, Any]], axis: Axis, value: Callable[[Mapping[str, Any]], float | None]
    ) -> Points:
        """Values over an axis; records that lack one of both are passed over.

        Args:
            records: ``steps`` or ``validations``.
            axis: What they are drawn over.
            value: Of a record.
        """
        pairs = ((self.place(record, axis), value(record)) for record in records)
        return [(place, found) for place, found in pairs if place is not None and found is not None]

    def held_out(self, axis: Axis, head: int = 0) -> Points:
        """Bits per byte of a head in each validation."""
        return self.points(self.validations, axis, lambda record: at(record["bits_per_byte_by_head"], head))

    def trained(self, axis: Axis) -> Points:
        """Bits per byte of head 0 in training, thinned out to a few hundred means."""
        return thinned(self.points(self.steps, axis, lambda record: at(record["bits_per_byte_by_head"], 0)))

    def agreement(self, axis: Axis, head: int) -> Points:
        """Estimated acceptance of a head in each validation."""
        return self.points(self.validations, axis, lambda record: at(record.get("agreement_by_head", ()), head))

    def bytes_per_step(self, axis: Axis) -> Points:
        """Estimated bytes of a step of self-speculative decoding in each validation."""
        return self.points(self.validations, axis, lambda record: record.get("bytes_per_step_estimate"))


def read_histories(runs: Sequence[Path]) -> list[History]:
    """The histories of runs.

    Raises:
        CheckpointError: A folder is no run, or nothing was logged in it yet.
    """
    return [_read(run, name) for run, name in zip(runs, short_names(runs), strict=True)]


def short_names(runs: Sequence[Path]) -> list[str]:
    """A name for each folder: as many of the last parts of its path as tell it from the others.

    Example:
        >>> short_names([Path("/a/x"), Path("/b/x"), Path("/b/y")])
        ['a/x', 'b/x', 'y']
    """
    parts = [run.resolve().parts for run in runs]
    names = []
    for own in parts:
        others = [other for other in parts if other != own]
        length = 1
        while length < len(own) and any(other[-length:] == own[-length:] for other in others):
            length += 1
        names.append("/".join(own[-length:]))
    return names


def thinned(points: Points, most: int = _MOST_POINTS) -> Points:
    """Means of as many neighbours as make a line of few points; a few that are left over at the end join the last ones.

    Example:
        >>> thinned([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0), (3.0, 5.0), (4.0, 2.0)], most=3)
        [(0.5, 2.0), (3.0, 4.0)]
    """
    size = max(1, -(-len(points) // most))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    if len(groups) > 1 and 2 * len(groups[-1]) <= size:  # the last step of a run alone would end the line in a spike
        groups[-2:] = [[*groups[-2], *groups[-1]]]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def at(values: Sequence[float | None], place: int) -> float | None:
    """A value of a row, None where the row is shorter."""
    return values[place] if place < len(values) else None


def _read(run: Path, name: str) -> History:
    records = read_log(run)
    steps, validations = (
        tuple(record for record in records if record["kind"] == kind and record.get("bits_per_byte_by_head"))
        for kind in ("step", "validation")
    )
    if not (steps or validations):
        raise CheckpointError(f"{run} has no figures in its log yet; train on until the first logged step")
    config, corpus = _config(run), _corpus(run)
    model = None if config is None else _model(config)
    return History(
        name=name,
        run=run,
        config=config,
        corpus=corpus,
        parameters=None if model is None else model.parameter_counts()["total"],
        flops_per_byte=None
        if model is None or config is None
        else model.flops_per_byte(config.data.window_bytes, training=True),
        steps=steps,
        validations=validations,
    )


def _config(run: Path) -> RunConfig | None:
    try:
        return read_config(run)
    except (CheckpointError, ConfigError):
        return None


def _corpus(run: Path) -> Data | None:
    try:
        place, fingerprint = read_maker(run)
    except CheckpointError:
        return None
    fingerprints = (fingerprint,) if isinstance(fingerprint, str) else tuple(fingerprint)
    if isinstance(place, str):
        return Data(fingerprints, (), (place,))
    return Data(fingerprints, tuple(one.rpartition(":")[2] for one in place), tuple(place))


def _model(config: RunConfig) -> ByteLM:
    with torch.device("meta"):
        model = ByteLM(config.model, config.heads)
    freeze(model, config.train.frozen)
    return model
