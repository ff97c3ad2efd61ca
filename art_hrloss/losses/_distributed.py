"""
Sums and maxima over the examples of all processes of a group, for training with torch.distributed.

The HR loss of a batch is not the mean of the losses of its parts. DistributedDataParallel averages the gradients of the
processes: if each process computed the loss of its own part, the average would be the gradient of another objective.
With these sums every process computes the loss of the joint batch.
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
    Sums and maxima of vectors that are distributed over the processes of a group; a part may be empty.

    All processes must call the methods in the same order. The gradient of a sum is multiplied by the number of
    processes, so that its average over the processes is the gradient of the joint sum.
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
    """Sum over processes, with a gradient: all_reduce itself is not differentiable."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.processes = dist.get_world_size(group)
        total = values.clone()
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, None]:
        # No communication: every process computes the same loss from the total, so the gradients are equal.
        return grad_total * ctx.processes, None
