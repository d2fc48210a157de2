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

_LINE_EVERY_S: Final = 4.0
_WORST_BITS: Final = 8.0  # of a byte about which nothing is known: the full length of a bar
_MOST_COLUMNS: Final = 120
_FRAME_COLUMNS: Final = 4
_TWO_PAIRS: Final = 90  # columns from which facts stand two in a line
_MOST_BAR_COLUMNS: Final = 48
_COLUMNS_BESIDE_BARS: Final = 44
_ROOM_FOR_BARS: Final = 60
_OTHER_LINES: Final = 8  # of the panel, beside bars, facts and sample
_SAMPLE_LINES: Final = 3
_TALL: Final = 30  # lines from which there is room for more than one line of a sample
_AVERAGE_DECAY: Final = 0.9


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
        self._shown = False
        self._line_due_s = clock() + _LINE_EVERY_S
        self._started: Started | None = None
        self._progress: Progress | None = None
        self._validation: Validation | None = None
        self._saved: tuple[Saved, float] | None = None
        self._average = _Average()

    def __enter__(self) -> "TrainingView":
        self._shown = True
        self._begin()
        return self

    def _begin(self) -> None:
        if self._shown and self._console.is_terminal and self._live is None:
            self._progress = self._validation = self._saved = None
            self._average = _Average()
            self._live = Live(console=self._console, get_renderable=self.dashboard, refresh_per_second=4)
            self._live.start()

    def __exit__(self, *_: object) -> None:
        self._shown = False
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
                self._begin()  # of several trainings the next one
                self._started = event
                for line in event.damaged:
                    self.say(f"WARNING: {line}", "bold red")
                self.say(_beginning(event))
            case Progress():
                self._progress = event
                self._average.add(event.bits_per_byte_by_head[0])
                if self._live is None and self._clock() >= self._line_due_s:
                    self._line_due_s = self._clock() + _LINE_EVERY_S
                    self.say(_progress_line(event))
            case Validation():
                self._validation = event
                if self._live is None:
                    self.say(_validation_line(event))
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
                self.close()  # what a training came to stands below its box
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
        width = min(self._console.width, _MOST_COLUMNS)
        title = console.styled(f"bytelm train · {self._started.run}", "bold")
        title.truncate(width - 2 - _FRAME_COLUMNS, overflow="ellipsis")  # a panel grows with its title
        return Panel(
            Group(*self._parts(width - _FRAME_COLUMNS)),
            title=title,
            title_align="left",
            width=width,
        )

    def _parts(self, columns: int) -> Iterator[RenderableType]:
        progress = self._progress
        if progress is None:
            yield Text("the first steps …")
            return
        share, left = f" {100 * progress.fraction:.1f} %", f", {_remaining(progress)} to go"
        bar = ProgressBar(total=1.0, completed=progress.fraction, width=max(8, columns - len(share) - len(left)))
        done = Table.grid()
        done.add_row(bar, share, left)
        yield done
        read = f"step {progress.step:,}, {size(progress.bytes_seen)} in {duration(progress.elapsed_s)}"
        yield Text(f"{read}; {_speed(progress)}", no_wrap=True, overflow="ellipsis")
        facts = self._facts(progress, pairs=2 if columns >= _TWO_PAIRS else 1)
        sample = self._sample(columns)
        heads = len(progress.bits_per_byte_by_head)
        room = self._console.height - _OTHER_LINES
        if room >= heads + facts.row_count + (len(sample) + 1 if sample else 0) and columns >= _ROOM_FOR_BARS:
            yield Text()
            yield self._bars(progress, columns)
            yield Text()
            yield facts
        else:  # every head is seen, whatever else is not
            held_out = () if self._validation is None else self._validation.bits_per_byte_by_head
            numbers = self._numbers(progress, held_out)
            if len(numbers.wrap(self._console, columns)) > room + 2:
                numbers = self._numbers(progress, ())
            lines = len(numbers.wrap(self._console, columns))
            yield numbers
            if room + 2 < lines + facts.row_count + (len(sample) + 1 if sample else 0):
                sample = []
            if room + 3 >= lines + facts.row_count:
                yield facts
        if sample:
            yield Text()
            yield Group(*sample)

    def _numbers(self, progress: "Progress", held_out: tuple[float | None, ...]) -> Text:
        """Bits per byte of every head, one behind the other."""
        heads = len(progress.bits_per_byte_by_head)
        text = Text(f"bits per byte by head, training{' (held out)' if held_out else ''}: ")
        for head, bits in enumerate(progress.bits_per_byte_by_head):
            known = f"({_number(held_out[head])})" if head < len(held_out) else ""
            text.append(" " if head else "")
            text.append(f"{head}:{_number(bits)}{known}", style=head_colour(head, heads))
        return text

    def _bars(self, progress: "Progress", columns: int) -> Table:
        heads = len(progress.bits_per_byte_by_head)
        table = Table(box=None, padding=(0, 1), show_edge=False)
        for title in ("head", "bits per byte", "training", "held out", "accepted"):
            table.add_column(title, justify="left" if title == "bits per byte" else "right", no_wrap=True)
        columns = min(_MOST_BAR_COLUMNS, columns - _COLUMNS_BESIDE_BARS)
        held_out = () if self._validation is None else self._validation.bits_per_byte_by_head
        accepted = () if self._validation is None else self._validation.agreement_by_head
        for head in range(heads):
            bits, share = progress.bits_per_byte_by_head[head], accepted[head] if head < len(accepted) else None
            table.add_row(
                str(head),
                _bar(bits, head_colour(head, heads), columns),
                _number(bits),
                _number(held_out[head] if head < len(held_out) else None),
                _value(share if head else None, ".0%"),
            )
        return table

    def _facts(self, progress: "Progress", pairs: int) -> Table:
        assert self._started is not None
        estimate = None if self._validation is None else self._validation.bytes_per_step_estimate
        facts = [
            ("bits per byte", f"{_number(progress.bits_per_byte_by_head[0])} now, {_number(self._average.value)} mean"),
            ("best held out", _number(self._best())),
            ("decoding", "–" if estimate is None else f"{estimate:.2f} bytes a step, estimated"),
            ("learning rate", f"{progress.learning_rate:.2e}"),
            ("gradient norm", _value(progress.grad_norm, ".2f")),
            ("memory", _memory(progress)),
            ("last checkpoint", self._last_checkpoint()),
            ("attention", f"{self._started.attention}: {self._started.attention_reason}"),
        ]
        if progress.skipped_steps:
            facts.append(("skipped steps", f"{progress.skipped_steps:,}"))
        if progress.replaced_windows:
            facts.append(("replaced windows", f"{progress.replaced_windows:,}"))
        table = Table.grid(padding=(0, 2), expand=True)
        for _ in range(pairs):
            table.add_column(style="bright_black", no_wrap=True)
            table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for start in range(0, len(facts), pairs):
            table.add_row(*(console.shown(cell) for fact in facts[start : start + pairs] for cell in fact))
        return table

    def _sample(self, columns: int) -> list[Text]:
        """What the model wrote after the last validation, a few lines of it."""
        if self._validation is None or not self._validation.sample:
            return []
        text = Text(_one_line(self._validation.prompt), style="bright_black")
        text.append(_one_line(self._validation.sample), style="default")
        lines = _SAMPLE_LINES if self._console.height >= _TALL else 1
        return [*text.wrap(self._console, columns, overflow="fold")][:lines]

    def _best(self) -> float | None:
        if self._validation is not None:
            return self._validation.best_bits_per_byte
        return None if self._started is None else self._started.best_bits_per_byte

    def _last_checkpoint(self) -> str:
        if self._saved is None:
            resumed = self._started is not None and self._started.resumed_from is not None
            return "before this start" if resumed else "none yet"
        saved, at_s = self._saved
        return f"step {saved.step:,}, {duration(self._clock() - at_s)} ago"


def _beginning(started: "Started") -> str:
    line = f"{started.parameters:,} parameters, {started.device}, {started.precision}"
    if started.ranks > 1:
        line += f", {started.ranks} processes ({started.parallel})"
    if started.compiled:
        line += ", compiled"
    line += f"; attention by {started.attention} ({started.attention_reason})"
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
        f"gradient norm {_value(progress.grad_norm, '.2f')}, {_speed(progress)}, {size(progress.peak_memory_bytes)} at "
        f"most, {_remaining(progress)} to go"
    )


def _validation_line(validation: "Validation") -> str:
    line = f"step {validation.step}: held out {_bits(validation.bits_per_byte_by_head)} bits per byte"
    if validation.best_bits_per_byte == validation.bits_per_byte_by_head[0]:
        line += ", the best so far"
    elif validation.best_bits_per_byte is not None:
        line += f", best {_number(validation.best_bits_per_byte)}"
    if len(validation.agreement_by_head) > 1 and validation.bytes_per_step_estimate is not None:
        shares = " ".join(_value(share, ".0%") for share in validation.agreement_by_head[1:])
        line += f"; drafts accepted {shares} (estimated), {validation.bytes_per_step_estimate:.2f} bytes a step"
    return line


def _bits(bits_by_head: tuple[float | None, ...]) -> str:
    """Head 0, and the others behind it."""
    first, *others = map(_number, bits_by_head)
    return f"{first} ({' '.join(others)})" if others else first


def _number(bits: float | None) -> str:
    return _value(bits, ".3f")


def _value(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _speed(progress: "Progress") -> str:
    utilisation = "" if progress.mfu is None else f", {100 * progress.mfu:.1f} % MFU"
    return f"{size(progress.bytes_per_second)}/s{utilisation}"


def _memory(progress: "Progress") -> str:
    most = f"{size(progress.peak_memory_bytes)} at most"
    return most if progress.memory_bytes is None else f"{size(progress.memory_bytes)}, {most}"


def _remaining(progress: "Progress") -> str:
    if progress.fraction <= 0:
        return "unknown"
    return duration(progress.elapsed_s * (1 - progress.fraction) / progress.fraction)


def _one_line(text: str) -> str:
    """Text that a terminal cannot obey, in one line."""
    return console.shown(text).replace("\n", "⏎").replace("\t", "⇥")


def _bar(bits: float | None, colour: str, columns: int) -> Text:
    filled = 0 if bits is None else round(columns * min(bits, _WORST_BITS) / _WORST_BITS)
    return Text("━" * filled, style=colour).append("─" * (columns - filled), style="bright_black")


class _Average:
    """A moving average of what is added; None before anything was."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, value: float | None) -> None:
        if value is not None:
            self._sum = _AVERAGE_DECAY * self._sum + (1 - _AVERAGE_DECAY) * value
            self._weight = _AVERAGE_DECAY * self._weight + (1 - _AVERAGE_DECAY)

    @property
    def value(self) -> float | None:
        return self._sum / self._weight if self._weight else None
