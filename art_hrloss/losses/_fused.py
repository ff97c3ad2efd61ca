"""The HR loss as one autograd function, which computes its gradient itself."""

import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from art_hrloss.losses._passes import IN_ADVANCE, Batch, Stored, is_by_index, rows_of
from art_hrloss.losses._triton import Kernels, has_kernels
from art_hrloss.losses._two_classes import Pairs
from art_hrloss.losses._validation import LossOptions

# Orders alpha - 1 nearer to 0, but not 0, magnify the rounding of log(sum_k exp(x_k)); the reference does not.
_NEAR_LIMIT = 0.1
# The compiler of torch 2.8 fails in arguments of an autograd.Function that are no tensors: it is given the reference.
_TRACES_PLANS = torch.__version__ >= "2.11"

Loss = Callable[[Tensor, Tensor, Tensor | None, LossOptions], Tensor]


def can_fuse(logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions) -> bool:
    """Return whether :func:`fused_loss` computes the loss of these arguments; the reference computes every loss."""
    if options.process_group is not None or _is_differentiated(weight) or _is_differentiated(target):
        return False
    exact = is_by_index(logits, target, options) or not 0 < abs(options.alpha - 1) < _NEAR_LIMIT
    return logits.numel() > 0 and exact and not _is_recorded()


def _is_differentiated(values: Tensor | None) -> bool:
    floating = values is not None and values.is_floating_point()
    return floating and (values.requires_grad or unpack_dual(values).tangent is not None)  # type: ignore[union-attr]


def _is_recorded() -> bool:
    """Return whether a program of plain operations is recorded, by export, jit.trace or make_fx."""
    if torch.compiler.is_compiling():
        # Of torch.compiler.is_exporting() older releases of torch.compile make True, whoever compiles.
        return torch.compiler._is_exporting_flag or not _TRACES_PLANS
    recorder = sys.modules.get("torch.fx.experimental.proxy_tensor")
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    return tracing or (recorder is not None and recorder.get_proxy_mode() is not None)


def fused_loss(logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions, reference: Loss) -> Tensor:
    """
    Return the HR loss of checked arguments.

    :param logits: float32 or float64, with at least one element.
    :param reference: The same loss made of operations that torch differentiates: derivatives beyond the first, forward
           mode and vmap are the reference's.
    """
    compiling = torch.compiler.is_compiling()
    batch = _kind_of_batch(logits, target, options)
    in_advance = logits.requires_grad and not compiling and logits.numel() <= IN_ADVANCE and batch is not Kernels
    strides = rows_of(logits).stride() if batch is Kernels else ()
    plan = _Plan(batch, options, reference, logits.requires_grad, in_advance, strides)
    return (_Compiled if compiling else _Fused).apply(logits, target, weight, plan)[0]  # type: ignore[no-any-return]


def _kind_of_batch(logits: Tensor, target: Tensor, options: LossOptions) -> type[Batch]:
    """Return the batch whose two passes compute the loss and its gradient."""
    if has_kernels(logits, target, options):
        return Kernels
    pairs = is_by_index(logits, target, options) and logits.shape[min(1, logits.ndim - 1)] == 2
    return Pairs if pairs else Batch


class _Plan(NamedTuple):
    batch: type[Batch]
    options: LossOptions
    reference: Loss
    with_gradient: bool
    in_advance: bool  # whether the gradient is computed with the loss
    strides: tuple[int, ...]  # of the rows, where kernels compute the loss


class _Compiled(torch.autograd.Function):
    """The loss for torch.compile, which does not take the methods of :class:`_Fused`."""

    @staticmethod
    def forward(logits: Tensor, target: Tensor, weight: Tensor | None, plan: _Plan) -> tuple[Any, ...]:
        batch = plan.batch(logits, target, weight, plan.options)
        loss, stored = batch.loss(with_gradient=plan.with_gradient, in_advance=plan.in_advance)
        return loss, stored.columns, stored.powers, stored.plain, stored.valid

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        *tensors, ctx.plan = inputs
        _, columns, powers, *ctx.known = output
        ctx.mark_non_differentiable(columns, powers)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, columns, powers)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor | None, *_: None) -> tuple[Tensor | None, None, None, None]:
        logits, target, weight, columns, powers = ctx.saved_tensors
        if by_loss is None:
            return None, None, None, None
        plan: _Plan = ctx.plan
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # the gradient is differentiated in turn
            pull = torch.func.vjp(lambda z: plan.reference(z, target, weight, plan.options), logits)[1]
            return pull(by_loss)[0], None, None, None
        if plan.in_advance:
            each = by_loss.unsqueeze(1) if by_loss.ndim else by_loss  # with reduction "none", a number per example
            return columns.reshape(logits.shape) * each, None, None, None
        batch = plan.batch(logits, target, weight, plan.options)
        plain, valid = ctx.known
        gradient = batch.gradient(Stored(columns, powers, plain, valid, plan.strides), by_loss)
        return gradient if logits.ndim == 2 else gradient.reshape(logits.shape), None, None, None


class _Fused(_Compiled):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> tuple[Tensor, None, None, None, None]:
        logits, target, weight = ctx.saved_tensors[:3]
        plan: _Plan = ctx.plan
        loss, pull = torch.func.vjp(  # type: ignore[misc]
            lambda z: plan.reference(z, target, weight, plan.options), logits
        )
        product = pull(torch.ones_like(loss))[0] * tangent  # an example's loss depends on its own logits only
        return product.sum(1) if loss.ndim else product.sum(), None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        *tensors, plan = inputs
        each = torch.func.vmap(lambda *one: plan.reference(*one, plan.options), in_dims[:3], randomness=info.randomness)
        nothing = tensors[0].new_empty(0)
        return (each(*tensors), nothing, nothing.clone(), False, False), (0, None, None, None, None)


# torch binds the arguments of `forward` at each call; with its signature at hand that takes a tenth of the time.
_Compiled.forward.__signature__ = inspect.signature(_Compiled.forward)  # type: ignore[attr-defined]
