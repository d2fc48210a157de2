"""Events of a training for TensorBoard, written by torch's own writer into ``tensorboard/`` of the run.

A copy for looking at: ``metrics.jsonl`` is the record. A run that goes on, or back, makes TensorBoard forget what is
behind the step that it goes on from.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from bytelm.errors import ConfigError
from bytelm.events import BitsByHead, Event, Finished, Progress, RolledBack, Started, Validation
from bytelm.utf8 import shown

FOLDER: Final = "tensorboard"


class TensorBoard:
    """Takes the events of ``bytelm.train.train`` one by one; a context manager, so that all of them get written.

    Raises:
        ConfigError: The package is missing.
    """

    def __init__(self) -> None:
        try:
            self._make: Any = import_module("torch.utils.tensorboard").SummaryWriter
        except ImportError as error:
            raise ConfigError("--tensorboard needs a package: pip install 'bytelm[tensorboard]'") from error
        self._folder: Path | None = None
        self._writer: Any = None

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def show(self, event: Event) -> None:
        """Take the next event."""
        match event:
            case Started():
                self._folder = event.run / FOLDER
                self._open(event.step)
            case RolledBack():
                self.close()
                self._open(event.step)
            case Progress() | Validation():
                for name, value in scalars(event):
                    self._writer.add_scalar(name, value, event.step)
                if isinstance(event, Validation) and event.sample:
                    self._writer.add_text("sample", as_markdown(event.prompt + event.sample), event.step)
            case Finished():
                self.close()

    def _open(self, step: int) -> None:
        # What an earlier start wrote behind this step is not shown any more.
        self._writer = self._make(str(self._folder), purge_step=step + 1)


def scalars(event: Progress | Validation) -> Iterator[tuple[str, float]]:
    """Names and values of an event; what is unknown is left out.

    Yields:
        Names with a group before the slash, as TensorBoard sorts them: ``training``, ``held out``, ``acceptance``,
        ``rates``, ``memory``.
    """
    if isinstance(event, Progress):
        found = [
            *_of_heads("training", event.bits_per_byte_by_head),
            ("rates/loss", event.loss),
            ("rates/gradient_norm", event.grad_norm),
            ("rates/learning_rate", event.learning_rate),
            ("rates/bytes_per_second", event.bytes_per_second),
            ("rates/mfu", event.mfu),
            ("rates/skipped_steps", float(event.skipped_steps)),
            ("memory/now_bytes", event.memory_bytes),
            ("memory/peak_bytes", event.peak_memory_bytes),
        ]
    else:
        found = [
            *_of_heads("held_out", event.bits_per_byte_by_head),
            *((f"acceptance/head_{head}", share) for head, share in enumerate(event.agreement_by_head) if head),
            ("acceptance/bytes_per_step", event.bytes_per_step_estimate),
        ]
    yield from ((name, float(value)) for name, value in found if value is not None)


def as_markdown(text: str) -> str:
    """Text of a model as TensorBoard, which reads Markdown, shows it as it is: a block of code."""
    return "\n".join(f"    {line}" for line in shown(text).split("\n"))


def _of_heads(group: str, bits_by_head: BitsByHead) -> Iterator[tuple[str, float | None]]:
    for head, bits in enumerate(bits_by_head):
        yield f"{group}/bits_per_byte_head_{head}", bits
