"""Memory of one training step, by part, found without computing one.

The step runs on fake tensors, which have shape, dtype and device but no contents: every allocation that PyTorch's
operators would make is seen, whatever the head family, the attention and the way the heads are back-propagated, and
the moment at which most is alive gives the peak. What kernels allocate inside themselves, what an allocator wastes and
the program itself are not seen.
"""

import contextlib
import math
import resource
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bytelm import machine
from bytelm.averaging import WeightAverage
from bytelm.config import ModelConfig, RunConfig
from bytelm.errors import TrainingError
from bytelm.fine_tuning import freeze
from bytelm.loss import multi_byte_loss
from bytelm.model import ByteLM
from bytelm.optim import make_optimizer, optimizer_tensors
from bytelm.packing import plain_batch, with_draft_rows
from bytelm.ranks import ALONE, Ranks, Share

_BESIDE: Final = {"cpu": (0.3e9, 1.6), "cuda": (0.0, 1.1)}
"""What is needed at worst beside the bytes that are traced: the program itself, and what the allocator wastes. On the
CPU a step of nano was seen to take 1.3 to 1.6 times its traced bytes."""
_BESIDE_ELSEWHERE: Final = (0.0, 1.2)
_ROUGH_BYTES: Final = 64
"""About as many bytes for each layer, channel and id of a micro-batch are alive at the peak."""
_BYTES_OF_A_PARAMETER: Final = 16
"""A weight, its gradient and two moments in float32."""
_CLEARLY_ENOUGH: Final = 0.25
"""Where what is needed is less than this share of what is free, nothing need be traced."""


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes that are alive at the peak of a step.

    Attributes:
        weights: Of the model.
        gradients: Of the weights, as many as are there at the peak.
        optimizer: The optimizer's state.
        average: The average of the weights, where one is kept.
        activations: All that forward and backward pass hold beside these, the windows of the step included.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        """The peak."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations

    def split(self, parts: int) -> "StepMemory":
        """The same where a process holds a part of every weight; the layer that is whole for a moment is not counted.

        Args:
            parts: Into how many they are split.
        """
        return StepMemory(
            weights=self.weights // parts,
            gradients=self.gradients // parts,
            optimizer=self.optimizer // parts,
            average=self.average // parts,
            activations=self.activations,
        )


@dataclass(frozen=True, kw_only=True)
class Traced:
    """What a step needs and what a checkpoint of it holds.

    Attributes:
        memory: At the peak of the step.
        model: Weights by name, without contents.
        average: Their average by name, without contents; empty where none is kept.
        optimizer: State by name, without contents.
    """

    memory: StepMemory
    model: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def trace_step(config: RunConfig, device: torch.device, *, bfloat16: bool) -> Traced:
    """Trace the second step of a run, the first one in which the optimizer has its state.

    Args:
        config: All settings.
        device: Where the run would compute; nothing is allocated there.
        bfloat16: Whether its products are in bfloat16 under autocast.
    """
    # Imported here: it brings a symbolic algebra system with it, which takes a second.
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return trace_real_step(config, device, bfloat16=bfloat16)


def trace_real_step(config: RunConfig, device: torch.device, *, bfloat16: bool) -> Traced:
    """The same with real tensors: what ``trace_step`` must agree with."""
    settings = config.train
    with _Alive() as alive:
        with torch.device(device):
            model = ByteLM(config.model, config.heads)
            freeze(model, settings.frozen)
        weights = alive.bytes
        average = WeightAverage(model, settings.ema_decay) if settings.ema_decay else None
        averages = alive.bytes - weights
        optimizer = make_optimizer(model, settings)
        for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        state = alive.bytes - weights - averages
        width = config.model.ids_for(config.data.window_bytes) + config.heads.count
        windows_BW = torch.zeros(settings.batch_windows, width, dtype=torch.uint8, device=device)
        micro_batches = [
            with_draft_rows(plain_batch(windows_BW, config.heads.count), config.heads.row_share, turn=0)
            for _ in range(settings.accumulation)
        ]
        with alive.watched_gradients(model):
            alive.begin()
            for batch in micro_batches[:2]:  # the second one meets the gradients of the first; a third one no more
                with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                    output = multi_byte_loss(model, batch, backward=config.heads.backward, z_loss=config.heads.z_loss)
                output.loss.backward()
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            nn.utils.clip_grads_with_norm_(model.parameters(), settings.clip_norm, norm)
            optimizer.step()
        memory = StepMemory(
            weights=weights,
            gradients=alive.gradients_at_peak,
            optimizer=state,
            average=averages,
            activations=alive.peak - weights - averages - state - alive.gradients_at_peak,
        )
        return Traced(
            memory=memory,
            model=model.state_dict(),
            average={} if average is None else {**model.state_dict(), **average.tensors()},
            optimizer=optimizer_tensors(optimizer, model),
        )


def available_memory(device: torch.device) -> int | None:
    """Bytes that this process may still take on a device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    memory = machine.memory() if device.type == "cpu" else None
    return None if memory is None else memory.available


def memory_bytes(device: torch.device) -> int | None:
    """Memory now: resident of the whole process on a CPU, of the allocator on a GPU; None where it is not told."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return None


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory so far: of the whole process on a CPU, of the allocator on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError, StopIteration):
        # What getrusage says begins with the memory of the program that started this one.
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # what the system counts in
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def needed_memory(memory: StepMemory, device: torch.device) -> int:
    """Bytes that should be free for a step: what was traced, and at worst what comes beside it."""
    fixed, factor = _BESIDE.get(device.type, _BESIDE_ELSEWHERE)
    return math.ceil(fixed + factor * memory.total)


def advice(config: RunConfig, device: torch.device, *, bfloat16: bool, available: int, ranks: Ranks = ALONE) -> str:
    """One line: what a step needs, and which settings would fit.

    Args:
        config: All settings, whose step does not fit.
        device: Where it should compute.
        bfloat16: Whether its products are in bfloat16.
        available: Bytes that it may take there.
        ranks: The processes that share a step.
    """

    def traced(windows: int) -> StepMemory:
        changes = [f"train.batch_windows={windows}", f"train.accumulation={share.micro_batches}"]
        memory = trace_step(config.with_changes(changes), device, bfloat16=bfloat16).memory
        return memory.split(ranks.count) if config.train.parallel == "fsdp" else memory

    share = Share.of_step(config.train, ranks.count)
    windows, own = share.batch_windows, share.batch_windows * share.micro_batches
    whole, single = traced(windows), traced(1)
    told = f"a step needs about {needed_memory(whole, device) / 1e9:.1f} GB, and {available / 1e9:.1f} GB are free"
    fixed, factor = _BESIDE.get(device.type, _BESIDE_ELSEWHERE)
    each = max(1.0, (whole.total - single.total) / max(1, windows - 1))
    fit = 1 + math.floor(((available - fixed) / factor - single.total) / each)
    # The largest part of a micro-batch that fits, so that a step stays what it was.
    fit = next((part for part in range(min(fit, windows - 1), 0, -1) if own % part == 0), 0)
    if fit == 0:
        tables = _table_parameters(config.model) * _BYTES_OF_A_PARAMETER
        lower = "data.window_bytes, heads.count or model.layers, or take a smaller preset"
        if tables > single.total / 2:
            lower = f"model.ngram_rows or model.ngram_width, whose tables take {tables / 1e9:.1f} GB"
        return f"{told}; even one window needs {needed_memory(single, device) / 1e9:.1f} GB: lower {lower}"
    return (
        f"{told}; with train.batch_windows={fit} and train.accumulation={own * ranks.count // fit} the same step fits"
    )


def _table_parameters(model: ModelConfig) -> int:
    return len(model.ngram_sizes) * model.ngram_rows * model.ngram_width


def _rough_parameters(model: ModelConfig) -> int:
    """About as many: the tables of n-grams, and of each layer the matrices of attention and feed-forward."""
    return _table_parameters(model) + model.layers * model.d_model * (4 * model.d_model + 3 * model.d_ff)


def refuse_too_large(config: RunConfig, device: torch.device, *, bfloat16: bool, ranks: Ranks = ALONE) -> None:
    """Refuse a step that a CPU surely has no memory for, before it is tried: the system would kill the process.

    Elsewhere the allocator refuses, and ``out_of_memory_named`` tells.

    Raises:
        TrainingError: It does not fit; with the settings that would.
    """
    available = available_memory(device) if device.type == "cpu" else None
    if available is None:
        return
    own = available // ranks.on_this_machine
    share = Share.of_step(config.train, ranks.count)
    ids = share.batch_windows * config.model.ids_for(config.data.window_bytes)
    rough = ids * config.model.layers * config.model.d_model * _ROUGH_BYTES
    rough += _rough_parameters(config.model) * _BYTES_OF_A_PARAMETER
    if rough < own * _CLEARLY_ENOUGH:  # to look closely takes a second
        return
    changes = [f"train.batch_windows={share.batch_windows}", f"train.accumulation={share.micro_batches}"]
    memory = trace_step(config.with_changes(changes), device, bfloat16=bfloat16).memory
    if config.train.parallel == "fsdp":
        memory = memory.split(ranks.count)
    if memory.total > own:
        told = advice(config, device, bfloat16=bfloat16, available=own, ranks=ranks)
        raise TrainingError(f"there is too little memory on {device}: {told}")


@contextlib.contextmanager
def out_of_memory_named(
    config: RunConfig, device: torch.device, *, bfloat16: bool, ranks: Ranks = ALONE
) -> Iterator[None]:
    """Turn the end of memory inside the block into an error that says which settings would fit.

    Raises:
        TrainingError: Memory is used up.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)):
            raise
        told = advice(config, device, bfloat16=bfloat16, available=available_memory(device) or 0, ranks=ranks)
        raise TrainingError(f"memory is used up on {device}: {told}") from error


class _Alive(TorchDispatchMode):
    """Counts the bytes of all storages that operators inside it make, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.peak = 0
        self.gradients = 0
        self.gradients_at_peak = 0
        self._sizes: dict[int, int] = {}

    def begin(self) -> None:
        """Look for the peak from here on."""
        self.peak, self.gradients_at_peak = self.bytes, self.gradients

    @contextlib.contextmanager
    def watched_gradients(self, model: nn.Module) -> Iterator[None]:
        """Inside, know how many bytes of the parameters have their gradient."""
        seen: set[int] = set()

        def count(parameter: Tensor) -> None:
            if id(parameter) not in seen:
                seen.add(id(parameter))
                self.gradients += parameter.nbytes

        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        hooks = [parameter.register_post_accumulate_grad_hook(count) for parameter in trained]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self._count(result.untyped_storage())
        return results

    def _count(self, storage: torch.UntypedStorage) -> None:
        place = storage._cdata
        if place in self._sizes:
            return
        self._sizes[place] = storage.nbytes()
        self.bytes += self._sizes[place]
        weakref.finalize(storage, self._forget, place)
        if self.bytes > self.peak:
            self.peak, self.gradients_at_peak = self.bytes, self.gradients

    def _forget(self, place: int) -> None:
        self.bytes -= self._sizes.pop(place)
