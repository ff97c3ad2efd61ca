"""
Sums and maxima over the examples of all processes of a group, for training with torch.distributed.

The HR loss of a batch is not the mean of the losses of its parts, so averaging the gradients of processes that each
take the loss of their part, as DistributedDataParallel does, optimises another objective. With these sums every process
computes the loss of the joint batch.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from art_hrloss.losses._numerics import Sums


class JointSums(Sums):
    """
    Sums and maxima of vectors that are split over the processes of a group; a process may have an empty part.

    All processes must call them in the same order. The gradient of a sum is multiplied by the number of processes:
    averaged over the processes, it is the gradient of the joint sum.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, shape ``(1,)``."""
        result: Tensor = _JointSum.apply(values.sum(-1, keepdim=True), self.group)
        return result

    def largest(self, values: Tensor) -> Tensor:
        """Return the maximum over all processes, shape ``(1,)``, without a gradient; -inf if there are no values."""
        result = torch.cat([values.detach(), values.new_full((1,), -math.inf)]).amax(-1, keepdim=True)
        dist.all_reduce(result, op=dist.ReduceOp.MAX, group=self.group)
        return result


class _JointSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.processes = dist.get_world_size(group)
        total = values.clone()
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_total: Tensor) -> tuple[Tensor, None]:
        return by_total * ctx.processes, None
