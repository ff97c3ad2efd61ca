"""
Means over the examples of all processes of a group, with exact gradients, under torch.distributed.

The HR loss of a batch is no mean over its examples, so it is no mean over the parts of a batch either: what
DistributedDataParallel does to the gradients of processes that each take the loss of their own part is another
objective. Here every process gets the loss of the joined batch.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def joint_exponential_mean(values: Tensor, mass: Tensor, order: float, group: dist.ProcessGroup) -> Tensor:
    """
    ``1 / order log sum_i m_i exp(order v_i)`` over the examples of all processes, the mean of v for order 0.

    All processes of the group must call it, in the same order, one without examples as well. Its gradients are those of
    the mean times the number of processes: averaged over them, as DistributedDataParallel does, they add up to what one
    process with all examples would have.

    :param values: Shape ``(n,)``; n differs between processes and may be 0.
    :param mass: The weight of each, not negative, shape ``(n,)``; m_i is its share of the weights of all.
    :return: A scalar, the same in every process; NaN, with zero gradients, where no example weighs anything.
    :raises ValueError: If the masses require gradients, which would need the values of the other processes.
    """
    if mass.requires_grad:
        raise ValueError("expected weights and labels that require no gradients when a process group is given")
    mean: Tensor = _JointMean.apply(values, mass, order, group)
    return mean


class _JointMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, mass: Tensor, order: float, group: dist.ProcessGroup) -> Tensor:
        mean: Tensor
        used = mass > 0
        values = torch.where(used, values, 0.0)  # what weighs nothing may be anything
        if order == 0:
            total, weighted = _summed(torch.stack([mass.sum(), (mass * values).sum()]), group)
            mean, by_values = weighted / total, mass / total
        else:
            lead = _lead(values, used, order, group)
            exponents = (values - lead) * order
            powers = mass * exponents.exp()
            sums = torch.stack([mass.sum(), powers.sum(), (mass * exponents.expm1()).sum()])
            total, power, less = _summed(sums, group)
            # Near 1 the mean of the powers has lost what that of exp(x) - 1 keeps; near 0 it is the other way round.
            log_mean = torch.where(power > total / 2, (less / total).log1p(), (power / total).log())
            mean, by_values = lead + log_mean / order, powers / power
        ctx.save_for_backward(torch.where(used, by_values * dist.get_world_size(group), 0.0))
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_mean: Tensor) -> tuple[Tensor, None, None, None]:
        by_values: Tensor = ctx.saved_tensors[0]
        return by_mean * by_values, None, None, None


def _summed(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Over all processes."""
    dist.all_reduce(values, op=dist.ReduceOp.SUM, group=group)
    return values


def _lead(values: Tensor, used: Tensor, order: float, group: dist.ProcessGroup) -> Tensor:
    """The value of all processes around which no power overflows; finite, because inf - inf is no number."""
    sign = math.copysign(1.0, order)
    none = values.new_full((1,), -math.inf)
    lead = torch.cat([torch.where(used, sign * values, -math.inf), none]).amax()
    dist.all_reduce(lead, op=dist.ReduceOp.MAX, group=group)
    greatest = torch.finfo(values.dtype).max
    return sign * lead.clamp(-greatest, greatest)
