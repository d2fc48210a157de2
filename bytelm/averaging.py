"""The exponential moving average of the weights: less noisy than the weights themselves, and better for it.

The average follows the weights and is never trained. Validation and generation use it in place of the weights; the
training goes on with its own. It is a function of the weights at each step and of the step's number alone, so its
tensors are all that must be kept for an exact resume.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from bytelm.errors import CheckpointError
from bytelm.split_tensors import part_of


def decay_at(step: int, decay: float) -> float:
    """Weight of the old average in an update: less in the beginning, so that the first weights are soon forgotten.

    Args:
        step: Steps done, the one that is averaged included: at least 1.
        decay: What it grows to.

    Source: ``tf.train.ExponentialMovingAverage``, argument ``num_updates``: min(decay, (1 + n) / (10 + n)).

    Example:
        >>> [round(decay_at(step, 0.99), 2) for step in (1, 10, 10_000)]
        [0.18, 0.55, 0.99]
    """
    return min(decay, (1 + step) / (10 + step))


class WeightAverage:
    """An average of the trained weights of a model; it begins as a copy of them.

    Args:
        model: Followed by ``update``.
        decay: Weight of the old average in each update, 0 < decay < 1: it remembers about 1 / (1 - decay) steps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        assert 0 < decay < 1
        self.decay = decay
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._averages = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move a little towards the weights.

        Args:
            step: Steps done, the one that made these weights included.
        """
        average = get_ema_multi_avg_fn(decay_at(step, self.decay))
        average([*self._averages.values()], [weight.detach() for weight in self._weights.values()], step)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model holds the averages; afterwards its own weights again, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def tensors(self) -> dict[str, Tensor]:
        """The averages by the names of their parameters; they share memory with the state."""
        return dict(self._averages)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put stored averages back, the inverse of ``tensors``.

        Args:
            tensors: By name; those of weights that are not trained are passed over.

        Raises:
            CheckpointError: They are not those of this model.
        """
        expected = {name: average.shape for name, average in self._averages.items()}
        if {name: tensor.shape for name, tensor in tensors.items() if name in expected} != expected:
            raise CheckpointError(
                "the stored average of the weights is not one of this model; resume with the settings that the run "
                "was started with"
            )
        for name, average in self._averages.items():
            average.copy_(part_of(tensors[name], average))

    @torch.no_grad()
    def _swap(self) -> None:
        # By value and not by pointer: whatever holds on to the parameters (a compiled graph, a shard) sees the change.
        for name, average in self._averages.items():
            weight = self._weights[name]
            kept = weight.detach().clone()
            weight.copy_(average)
            average.copy_(kept)
