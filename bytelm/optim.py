"""The optimizer of a byte model: AdamW for everything, or Muon for the matrices and AdamW for the rest.

Both follow one learning rate. Muon's update of a matrix is orthogonal up to a factor, and the factor is chosen so that
its entries have the root mean square 0.2, which is what AdamW's entries have in practice; so the rate and the decay
that suit AdamW suit Muon too, and ``train.learning_rate`` means the same for both.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bytelm.config import TrainConfig
from bytelm.errors import CheckpointError
from bytelm.muon import Muon
from bytelm.split_tensors import part_of

_UNEMBEDDING: Final = "unembedding"
_STATE_OF: Final[dict[type[torch.optim.Optimizer], frozenset[str]]] = {
    torch.optim.AdamW: frozenset({"step", "exp_avg", "exp_avg_sq"}),
    torch.optim.Muon: frozenset({"momentum_buffer"}),
    Muon: frozenset({"momentum_buffer"}),
}
"""What each optimizer keeps of a parameter."""


@dataclass(frozen=True)
class Optimizer:
    """One optimizer of torch or two, which share out the parameters and take their steps together.

    Attributes:
        parts: Optimizers of torch; no parameter is in two.
    """

    parts: tuple[torch.optim.Optimizer, ...]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of all parts; the dictionaries are the parts' own."""
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self) -> None:
        """Let go of all gradients."""
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for part in self.parts:
            part.step()


def make_optimizer(model: nn.Module, train: TrainConfig) -> Optimizer:
    """The optimizer that the settings name, over all parameters, with decay on matrices alone.

    The matrices are the weights of linear layers. Gains are scales around 1, not weights to be kept small, and the
    embedding row of a byte that a batch does not hold would shrink without being used: neither decays. Of the
    matrices Muon takes all but the unembeddings, whose rows are classes and not directions of one space.

    Args:
        model: Its parameters that require gradients are optimized.
        train: Kind, decay, betas and momentum; the rate is set at each step by ``set_learning_rate``.

    Source: AdamW: Loshchilov and Hutter 2019 (arXiv 1711.05101), algorithm 2; values of Gloeckle et al. 2024, table
        S13. Muon: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", as torch has it; the
        factor 0.2 · sqrt(largest side) of its rate: Liu et al. 2025 (arXiv 2502.16982), §2.2, equation 4.
    """
    linear = {id(module.weight): name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if id(parameter) in linear]
    if train.frozen == "language_model":  # the rows of head 0 must not decay
        matrices = [matrix for matrix in matrices if linear[id(matrix)].rpartition(".")[2] != _UNEMBEDDING]
    decaying = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in trained if id(parameter) not in decaying]
    parts: list[torch.optim.Optimizer] = []
    if train.optimizer == "muon":
        hidden = [matrix for matrix in matrices if linear[id(matrix)].rpartition(".")[2] != _UNEMBEDDING]
        taken = {id(matrix) for matrix in hidden}
        matrices = [matrix for matrix in matrices if id(matrix) not in taken]
        if hidden:
            rate, decay, momentum = train.learning_rate, train.weight_decay, train.muon_momentum
            if any(isinstance(matrix, DTensor) for matrix in hidden):  # parts of matrices cannot be stacked
                slow = torch.optim.Muon(
                    hidden, lr=rate, weight_decay=decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
                )
                parts.append(slow)
            else:
                parts.append(Muon(hidden, lr=rate, weight_decay=decay, momentum=momentum))
    groups = [
        {"params": matrices, "weight_decay": train.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if groups:
        # Fused: one kernel for all parameters, on the CPU as on CUDA; five times faster than a loop for 1 M parameters.
        parts.append(torch.optim.AdamW(groups, lr=train.learning_rate, betas=(train.beta1, train.beta2), fused=True))
    return Optimizer(tuple(parts))


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every parameter group one learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as ``PARAMETER.STATE`` tensors, ready to be stored.

    Args:
        optimizer: Of the model's parameters.
        model: Gives the parameters their names.

    Returns:
        Tensors that share memory with the state; empty before the first step.
    """
    tensors = {}
    for name, _, part, parameter in _placed(optimizer, model):
        for key, value in part.state.get(parameter, {}).items():
            assert isinstance(value, Tensor)
            tensors[f"{name}.{key}"] = value
    return tensors


def load_optimizer_tensors(optimizer: Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put stored state back, the inverse of ``optimizer_tensors``.

    Args:
        optimizer: Of the model's parameters; what it held is replaced.
        model: Gives the parameters their names.
        tensors: What ``optimizer_tensors`` returned; copied to each parameter's device.

    Raises:
        CheckpointError: A tensor belongs to no parameter, has another shape than it, or is of another optimizer.
    """
    places = {name: (kept, part, parameter) for name, kept, part, parameter in _placed(optimizer, model)}
    for part in optimizer.parts:
        part.state.clear()
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(".")
        kept, part, parameter = places.get(name, (frozenset[str](), None, None))
        if part is None or parameter is None or (tensor.ndim > 0 and tensor.shape != parameter.shape):
            raise CheckpointError(
                f"the optimizer state holds {full_name!r} of shape {tuple(tensor.shape)}, which fits no parameter of "
                "this model; resume with the settings that the run was started with"
            )
        if key not in kept:
            raise CheckpointError(
                f"the optimizer state holds {full_name!r}, which {type(part).__name__} does not keep; resume with the "
                "train.optimizer that the run was started with"
            )
        own = tensor.to(parameter.device, copy=True)
        part.state[parameter][key] = part_of(own, parameter) if own.ndim else own


def _placed(
    optimizer: Optimizer, model: nn.Module
) -> Iterator[tuple[str, frozenset[str], torch.optim.Optimizer, nn.Parameter]]:
    """Every parameter that is optimized: its name, what is kept of it, the part that has it, itself."""
    part_of = {
        id(parameter): part for part in optimizer.parts for group in part.param_groups for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        part = part_of.get(id(parameter))
        if part is not None:
            yield name, _STATE_OF[type(part)], part, parameter
