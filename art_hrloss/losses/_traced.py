"""
The HR loss of class indices for torch.compile: the formulas of ``_fused`` in operations that it can fuse.

Nothing is done in place, in blocks, or by scattering, so that the compiler makes one loop of each pass over the logits.
"""

from typing import Any

import torch
from torch import Tensor

from art_hrloss.losses._reduction import Options, index_and_mass, reduced


def traced_loss(logits: Tensor, target: Tensor, weight: Tensor | None, options: Options) -> Tensor:
    """
    The HR loss as :func:`art_hrloss.fused.fused_loss` gives it; differentiable once, as all that is compiled.

    :param logits: Shape ``(..., C)``, float32 or float64, with at least one example.
    :param target: Class indices, int64, shape ``(...)``.
    :param weight: Shape ``(C,)``, of the logits' dtype, or None.
    :return: In nats, shape ``(...)`` for reduction "none", else a scalar.
    """
    rows = logits.reshape(-1, logits.shape[-1])
    index, mass = index_and_mass(target.reshape(-1, 1), weight, options.ignore_index, rows)
    loss: Tensor = _Traced.apply(rows, index, mass, options.order, options.reduction)
    return loss.reshape(target.shape) if options.reduction == "none" else loss


class _Traced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, mass: Tensor | None, order: float, reduction: str) -> Tensor:
        peak = rows.amax(1, keepdim=True)
        w = rows - peak
        q, top = w.exp(), w == 0
        # Of equal largest logits all but one are others.
        tops = torch.where(top, 1.0, 0.0).sum(1, keepdim=True)
        others = torch.where(top, 0.0, q).sum(1, keepdim=True) + (tops - 1)
        excess = _product(q, -w).sum(1, keepdim=True) / (others + 1)
        distance = peak - rows.gather(1, index)
        log1p = others.log1p()
        loss, by_entropy, by_nll = reduced(log1p + excess, log1p + distance, mass, order, reduction)
        by = (torch.as_tensor(share, dtype=rows.dtype, device=rows.device) for share in (by_entropy, by_nll))
        ctx.save_for_backward(rows, index, peak, others, excess, *by)
        return loss

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor, None, None, None, None]:
        rows, index, peak, others, excess, by_entropy, by_nll = ctx.saved_tensors
        scale = by_loss.reshape(-1, 1) / (others + 1)
        w = rows - peak
        q = w.exp()
        label = torch.arange(rows.shape[1], device=rows.device) == index
        # At y, q_y - 1 is - (s + 1 - exp(-u_y)) / (1 + s): exact where q_y is nearly 1.
        by_logits = _product(q, -w - excess) * (scale * by_entropy)
        by_logits = by_logits + torch.where(label, -(others + (1 - q)), q) * (scale * by_nll)
        return by_logits, None, None, None, None


def _product(q: Tensor, factor: Tensor) -> Tensor:
    """The product, 0 where q is, even of an infinite factor."""
    return torch.where(q == 0, 0.0, q * factor)
