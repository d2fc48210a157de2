"""What a training looks like: a live dashboard on a terminal, a line now and then elsewhere; both on stderr."""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bytelm.cli import console
from bytelm.cli.quantities import duration, size
from bytelm.palette import head_colour

if TYPE_CHECKING:
    from bytelm.events import Event, Progress, RolledBack, Saved, Started, Validation

_LINE_EVERY_S: Final = 5.0
_WORST_BITS: Final = 8.0  # of a byte about which nothing is known: the full length of a bar
_BAR_COLUMNS: Final = 30
_OTHER_LINES: Final = 11  # of the panel, beside the bars


class TrainingView:
    """Shows the records of ``bytelm.train.train``; a context manager, so that the terminal is left as it was.

    Args:
        people: Where to show them; a terminal gets the dashboard.
        clock: Seconds from any beginning; decides when the next line is due.
    """

    def __init__(self, people: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = people or console.people()
        self._clock = clock
        self._live: Live | None = None
        self._line_due_s = clock() + _LINE_EVERY_S
        self._started: Started | None = None
        self._progress: Progress | None = None
        self._validation: Validation | None = None
        self._saved: tuple[Saved, float] | None = None

    def __enter__(self) -> "TrainingView":
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self.dashboard, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the dashboard as it is and give the terminal back; lines may follow."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, line: str, style: str = "") -> None:
        """A line that stays, above the dashboard where there is one."""
        # A line that a program reads is not folded at a width that nobody sees.
        self._console.print(console.styled(line, style), soft_wrap=not self._console.is_terminal)

    def show(self, event: "Event") -> None:
        """Take the next record."""
        from bytelm.events import Finished, Progress, Refused, Replaced, RolledBack, Saved, Skipped, Started, Validation

        match event:
            case Started():
                self._started = event
                for line in event.damaged:
                    self.say(f"WARNING: {line}", "bold red")
                self.say(_beginning(event))
            case Progress():
                self._progress = event
                if self._live is None and self._clock() >= self._line_due_s:
                    self._line_due_s = self._clock() + _LINE_EVERY_S
                    self.say(_progress_line(event))
            case Validation():
                self._validation = event
                if self._live is None:
                    self.say(f"step {event.step}: held out {_bits(event.bits_per_byte_by_head)} bits per byte")
            case Saved():
                self._saved = (event, self._clock())
            case Refused():
                self.say(f"WARNING: step {event.step}: {event.reason}; training goes on", "bold red")
            case Skipped():
                self.say(f"WARNING: step {event.step} was skipped: its {event.what} is not finite", "yellow")
            case Replaced():
                self.say(f"WARNING: {event.reason}; other windows stand in for it", "bold red")
            case RolledBack():
                for line in event.damaged:
                    self.say(f"WARNING: {line}", "bold red")
                self.say(_going_back(event), "bold red")
            case Finished():
                self.say(self._ending(event.step, event.bytes_seen, event.elapsed_s))

    def _ending(self, step: int, bytes_seen: int, elapsed_s: float) -> str:
        line = f"{step:,} steps, {size(bytes_seen)} in {duration(elapsed_s)}"
        if self._validation is not None:
            line += f"; held out {_bits(self._validation.bits_per_byte_by_head)} bits per byte"
        return line

    def dashboard(self) -> RenderableType:
        """What the terminal shows now."""
        if self._started is None:
            return Text("opening the corpus …")
        return Panel(
            Group(*self._parts()),
            title=console.styled(f"bytelm train · {self._started.run}", "bold"),
            title_align="left",
            width=min(self._console.width, 100),
        )

    def _parts(self) -> Iterator[RenderableType]:
        progress = self._progress
        if progress is None:
            yield Text("the first steps …")
            return
        done = Table.grid(padding=(0, 2))
        done.add_row(
            ProgressBar(total=1.0, completed=progress.fraction, width=_BAR_COLUMNS),
            f"{100 * progress.fraction:.1f} %",
            f"step {progress.step:,}",
            size(progress.bytes_seen),
            duration(progress.elapsed_s),
            f"{_remaining(progress)} to go",
        )
        yield done
        yield Text()
        yield self._bars(progress)
        yield Text()
        facts = Table.grid(padding=(0, 3))
        facts.add_row("learning rate", f"{progress.learning_rate:.2e}", "bytes per second", _rate(progress))
        facts.add_row(
            "gradient norm", _value(progress.grad_norm, ".2f"), "peak memory", size(progress.peak_memory_bytes)
        )
        facts.add_row("last checkpoint", self._last_checkpoint(), "loss", f"{_value(progress.loss, '.3f')} nats")
        if progress.skipped_steps:
            facts.add_row("skipped steps", f"{progress.skipped_steps:,}")
        yield facts

    def _bars(self, progress: "Progress") -> Table:
        heads = len(progress.bits_per_byte_by_head)
        rows = max(1, min(heads, self._console.height - _OTHER_LINES))
        shown = sorted({round(row * (heads - 1) / max(rows - 1, 1)) for row in range(rows)})
        table = Table(box=None, padding=(0, 1), show_edge=False)
        table.add_column("head", justify="right")
        table.add_column("bits per byte")
        table.add_column("train", justify="right")
        table.add_column("held out", justify="right")
        for head in shown:
            bits = progress.bits_per_byte_by_head[head]
            held_out = None if self._validation is None else self._validation.bits_per_byte_by_head[head]
            table.add_row(str(head), _bar(bits, head_colour(head, heads)), _number(bits), _number(held_out))
        return table

    def _last_checkpoint(self) -> str:
        if self._saved is None:
            return "none yet"
        saved, at_s = self._saved
        return f"step {saved.step:,}, {duration(self._clock() - at_s)} ago"


def _beginning(started: "Started") -> str:
    line = f"{started.parameters:,} parameters, {started.device}, {started.precision}"
    if started.ranks > 1:
        line += f", {started.ranks} processes ({started.parallel})"
    if started.resumed_from is not None:
        line += f"; goes on from {started.resumed_from}"
    if not started.held_out_bytes:
        line += "; the corpus holds no bytes out, so there will be no validation"
    return line


def _going_back(event: "RolledBack") -> str:
    place = "its beginning" if event.checkpoint is None else str(event.checkpoint)
    return (
        f"WARNING: nothing was finite up to step {event.from_step}; the run goes back to {place} and on at "
        f"{event.learning_rate_ratio:g} of the learning rate"
    )


def _progress_line(progress: "Progress") -> str:
    return (
        f"step {progress.step}: {100 * progress.fraction:.1f} %, {size(progress.bytes_seen)}, "
        f"{_bits(progress.bits_per_byte_by_head)} bits per byte, learning rate {progress.learning_rate:.2e}, "
        f"gradient norm {_value(progress.grad_norm, '.2f')}, {_rate(progress)}, {_remaining(progress)} to go"
    )


def _bits(bits_by_head: tuple[float | None, ...]) -> str:
    """Head 0, and the others behind it."""
    first, *others = map(_number, bits_by_head)
    return f"{first} ({' '.join(others)})" if others else first


def _number(bits: float | None) -> str:
    return _value(bits, ".3f")


def _value(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _rate(progress: "Progress") -> str:
    return f"{size(progress.bytes_per_second)}/s"


def _remaining(progress: "Progress") -> str:
    if progress.fraction <= 0:
        return "unknown"
    return duration(progress.elapsed_s * (1 - progress.fraction) / progress.fraction)


def _bar(bits: float | None, colour: str) -> Text:
    filled = 0 if bits is None else round(_BAR_COLUMNS * min(bits, _WORST_BITS) / _WORST_BITS)
    return Text("━" * filled, style=colour).append("─" * (_BAR_COLUMNS - filled), style="bright_black")
