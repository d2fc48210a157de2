"""Memory of one training step, by part, found without computing one.

The step runs on fake tensors, which have shape, dtype and device but no contents: every allocation that PyTorch's
operators would make is seen, whatever the head family, the attention and the way the heads are back-propagated, and
the moment at which most is alive gives the peak. What kernels allocate inside themselves, what an allocator wastes and
the program itself are not seen.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bytelm.config import RunConfig
from bytelm.loss import multi_byte_loss
from bytelm.model import ByteLM
from bytelm.optim import make_optimizer, optimizer_tensors
from bytelm.packing import plain_batch


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes that are alive at the peak of a step.

    Attributes:
        weights: Of the model.
        gradients: Of the weights, as many as are there at the peak.
        optimizer: The optimizer's state.
        activations: All that forward and backward pass hold beside these, the windows of the step included.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """The peak."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True, kw_only=True)
class Traced:
    """What a step needs and what a checkpoint of it holds.

    Attributes:
        memory: At the peak of the step.
        model: Weights by name, without contents.
        optimizer: State by name, without contents.
    """

    memory: StepMemory
    model: dict[str, Tensor]
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
        weights = alive.bytes
        optimizer = make_optimizer(model, settings)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        state = alive.bytes - weights
        width = config.data.window_bytes + config.heads.count
        windows_BW = torch.zeros(settings.batch_windows, width, dtype=torch.uint8, device=device)
        micro_batches = [plain_batch(windows_BW, config.heads.count) for _ in range(settings.accumulation)]
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
            activations=alive.peak - weights - state - alive.gradients_at_peak,
        )
        return Traced(memory=memory, model=model.state_dict(), optimizer=optimizer_tensors(optimizer, model))


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

        hooks = [parameter.register_post_accumulate_grad_hook(count) for parameter in model.parameters()]
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
