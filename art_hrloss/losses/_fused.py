"""The HR loss as one autograd function with an explicit gradient, instead of a graph of many operations."""

import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from art_hrloss.losses._passes import IN_ADVANCE, Batch, Stored, has_hard_labels, rows_of
from art_hrloss.losses._triton import Kernels, has_kernels
from art_hrloss.losses._two_classes import Pairs
from art_hrloss.losses._validation import LossOptions

# For soft labels the fused loss divides the rounding of log(sum_k exp(x_k)) by alpha - 1. Orders closer to 1 than this,
# except 1 itself, are therefore left to the reference, which does not lose this precision.
_NEAR_LIMIT = 0.1
# The compiler of older releases cannot trace an autograd.Function with arguments that are not tensors, such as _Plan.
_TRACES_PLANS = torch.__version__ >= "2.11"

Loss = Callable[[Tensor, Tensor, Tensor | None, LossOptions], Tensor]


def can_fuse(logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions) -> bool:
    """Return True if :func:`fused_loss` supports these arguments; the reference supports all arguments."""
    if options.process_group is not None or _is_differentiated(weight) or _is_differentiated(target):
        return False
    exact = has_hard_labels(logits, target, options) or not 0 < abs(options.alpha - 1) < _NEAR_LIMIT
    return logits.numel() > 0 and exact and not _is_recorded()


def _is_differentiated(values: Tensor | None) -> bool:
    """Return True if a gradient by the weights or labels may be needed; the fused loss has only that of the logits."""
    floating = values is not None and values.is_floating_point()
    return floating and (values.requires_grad or unpack_dual(values).tangent is not None)  # type: ignore[union-attr]


def _is_recorded() -> bool:
    """Return True while torch.export, jit.trace or make_fx records a program, which must not contain the function."""
    if torch.compiler.is_compiling():
        # torch.compile of older releases turns torch.compiler.is_exporting() into True also when it does not export.
        return torch.compiler._is_exporting_flag or not _TRACES_PLANS  # noqa: SLF001
    recorder = sys.modules.get("torch.fx.experimental.proxy_tensor")
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    return tracing or (recorder is not None and recorder.get_proxy_mode() is not None)


def fused_loss(logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions, reference: Loss) -> Tensor:
    """
    Return the HR loss of checked arguments.

    :param logits: float32 or float64, with at least one element.
    :param reference: The same loss composed of differentiable operations of torch. It provides second derivatives,
           forward-mode derivatives and vmap.
    """
    compiling = torch.compiler.is_compiling()
    batch = _kind_of_batch(logits, target, options)
    # A small batch stays in the cache between the two passes, so its gradient costs least right after the loss.
    in_advance = logits.requires_grad and not compiling and logits.numel() <= IN_ADVANCE and batch is not Kernels
    strides = rows_of(logits).stride() if batch is Kernels else ()
    plan = _Plan(batch, options, reference, logits.requires_grad, in_advance, strides)
    return (_Compiled if compiling else _Fused).apply(logits, target, weight, plan)[0]  # type: ignore[no-any-return]


def _kind_of_batch(logits: Tensor, target: Tensor, options: LossOptions) -> type[Batch]:
    """Return the class whose two passes compute the loss and its gradient."""
    if has_kernels(logits, target, options):
        return Kernels
    pairs = has_hard_labels(logits, target, options) and logits.shape[min(1, logits.ndim - 1)] == 2
    return Pairs if pairs else Batch


class _Plan(NamedTuple):
    """The arguments of the autograd function that are not tensors."""

    batch: type[Batch]
    options: LossOptions
    reference: Loss
    with_gradient: bool
    in_advance: bool  # whether the gradient is computed together with the loss
    strides: tuple[int, ...]  # the strides of the rows, if kernels compute the loss


class _Compiled(torch.autograd.Function):
    """The loss for torch.compile, which does not support functions with the methods of :class:`_Fused`."""

    @staticmethod
    def forward(logits: Tensor, target: Tensor, weight: Tensor | None, plan: _Plan) -> tuple[Any, ...]:
        batch = plan.batch(logits, target, weight, plan.options)
        loss, stored = batch.loss(with_gradient=plan.with_gradient, in_advance=plan.in_advance)
        return loss, stored.columns, stored.powers, stored.all_finite, stored.valid

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        *tensors, ctx.plan = inputs
        _, columns, powers, *ctx.assumptions = output
        # The intermediate values are outputs of forward, since save_for_backward accepts only inputs and outputs.
        ctx.mark_non_differentiable(columns, powers)
        ctx.set_materialize_grads(False)  # else torch would allocate zeros for the gradients of these outputs
        ctx.save_for_backward(*tensors, columns, powers)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, None, None, None]:
        logits, target, weight, columns, powers = ctx.saved_tensors
        if grad_loss is None:
            return None, None, None, None
        plan: _Plan = ctx.plan
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # for second derivatives
            pullback = torch.func.vjp(lambda z: plan.reference(z, target, weight, plan.options), logits)[1]
            return pullback(grad_loss)[0], None, None, None
        if plan.in_advance:  # forward has stored the gradient in place of the columns
            factor = grad_loss.unsqueeze(1) if grad_loss.ndim else grad_loss  # one per example with reduction "none"
            return columns.reshape(logits.shape) * factor, None, None, None
        batch = plan.batch(logits, target, weight, plan.options)
        all_finite, valid = ctx.assumptions
        gradient = batch.gradient(Stored(columns, powers, all_finite, valid, plan.strides), grad_loss)
        return gradient if logits.ndim == 2 else gradient.reshape(logits.shape), None, None, None


class _Fused(_Compiled):
    """The loss with forward-mode derivatives and vmap, both computed by the reference."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> tuple[Tensor, None, None, None, None]:
        logits, target, weight = ctx.saved_tensors[:3]
        plan: _Plan = ctx.plan
        loss, pullback = torch.func.vjp(  # type: ignore[misc]
            lambda z: plan.reference(z, target, weight, plan.options), logits
        )
        # One backward pass gives all derivatives, because the loss of an example depends on its own logits only.
        product = pullback(torch.ones_like(loss))[0] * tangent
        return product.sum(1) if loss.ndim else product.sum(), None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        *tensors, plan = inputs
        loss = torch.func.vmap(
            lambda *args: plan.reference(*args, plan.options), in_dims[:3], randomness=info.randomness
        )
        empty = tensors[0].new_empty(0)
        return (loss(*tensors), empty, empty.clone(), False, False), (0, None, None, None, None)


# torch inspects the signature of `forward` at each call; storing it makes that ten times faster.
_Compiled.forward.__signature__ = inspect.signature(_Compiled.forward)  # type: ignore[attr-defined]
