"""Tensors of which each process holds a part: from the parts to the whole and back.

A model that several processes share out among them (``fully_shard``) has parameters, gradients and optimizer states of
this kind. All else in bytelm speaks of whole tensors; these two functions stand in between.
"""

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its values; all processes that hold a part of it must ask for it at the same time.

    Args:
        tensor: A part of one, or a plain tensor, which is given back as it is.
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """What this process holds of a whole tensor, the inverse of ``whole``; no process waits for another.

    Args:
        tensor: Whole, equal on all processes.
        like: A tensor of the same shape that is held in parts, and in which ones; or a plain tensor, and then all
            of ``tensor`` is held.

    Returns:
        On the device of ``like``; it may share memory with ``tensor``.
    """
    tensor = tensor.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return tensor
