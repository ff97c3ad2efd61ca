"""
The mathematics of the HR loss, as pure functions of tensors.

Notation: ``q`` is the softmax of the logits (the soft decision), ``p`` the distribution of the labels, ``n`` the number
of examples, ``M`` the number of classes. Logarithms are natural, so every value is in nats. Equation numbers are those
of Picot, Piantanida, Messina and Labeau, "Modelling the Uncertainty of a Deep Neural Network Enhances its Adversarial
Robustness", GRETSI 2019.

Shapes follow :class:`torch.nn.CrossEntropyLoss`: logits are ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``; each position
``d1, ...`` counts as an example of its own. float16 and bfloat16 are computed in, and returned as, float32.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.overrides import handle_torch_function, has_torch_function

from art_hrloss.losses._distributed import JointSums
from art_hrloss.losses._fused import can_fuse, fused_loss
from art_hrloss.losses._numerics import LOCAL, entropy, exponential_mean, log_softmax
from art_hrloss.losses._validation import (
    LossOptions,
    Reduction,
    as_float,
    check_alpha,
    check_logits,
    check_target,
    check_weight_for,
    classes_last,
)

# A ratio whose power is 0 at orders below 0.
_FAR = 1e30


class HRLossTerms(NamedTuple):
    """The two terms of eq. (3), in nats; the loss is their sum."""

    conditional_entropy: Tensor
    """H(Y^|X), at least 0 and at most log M."""
    renyi_divergence: Tensor
    """alpha D_alpha(p_XY || p_XY^), at least 0: the factor alpha is already in it."""


def softmax_entropy(logits: Tensor) -> Tensor:
    """
    Entropy of each example's softmax, ``- sum_k q_k log q_k``.

    :param logits: Shape ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``; a class at -inf is one that never occurs.
    :return: Nats in [0, log C], of the logits' shape without the class dimension.

    >>> softmax_entropy(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    tensor([0.6931, 0.5822])
    """
    return entropy(log_softmax(classes_last(logits)))


def conditional_entropy(logits: Tensor) -> Tensor:
    """
    The uncertainty of the soft decision, ``H(Y^|X) = mean_i [- sum_k q_ik log q_ik]`` (section 2.1).

    :param logits: Shape ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``.
    :return: A scalar in [0, log C], in nats.

    >>> conditional_entropy(torch.tensor([[0.0, 0.0], [0.0, -torch.inf]]))
    tensor(0.3466)
    """
    return softmax_entropy(logits).mean()


def renyi_divergence(log_p: Tensor, log_q: Tensor, *, alpha: float, dim: int = -1) -> Tensor:
    """
    Renyi divergence as the paper scales it, ``1 / (alpha (alpha - 1)) log sum_k p_k^alpha q_k^(1 - alpha)`` (eq. (4)).

    The factor 1/alpha is the paper's; most libraries leave it out. At alpha = 1 it is the limit, the Kullback-Leibler
    divergence. It is inf where p gives weight to what q excludes (for alpha >= 1) or where the two are disjoint.

    :param log_p: Log-probabilities of the first distribution, normalised along `dim`; -inf is probability 0.
    :param log_q: Log-probabilities of the second, broadcastable to `log_p`.
    :param alpha: The order, finite and above 0.
    :param dim: The dimension that holds the distribution.
    :return: Nats, at least 0 up to rounding, of the broadcast shape without `dim`.

    >>> p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.25, 0.75])
    >>> renyi_divergence(p.log(), q.log(), alpha=2)  # log(1 / 0.25) / 2
    tensor(0.6931)
    """
    alpha = check_alpha(alpha)
    log_p, log_q = as_float(log_p), as_float(log_q)
    log_p, log_q = torch.broadcast_tensors(log_p, log_q)
    log_p, log_q = log_p.movedim(dim, -1), log_q.movedim(dim, -1)
    if alpha < 0.5:  # D_alpha(p || q) = D_(1 - alpha)(q || p), which does not divide by alpha.
        return _log_ratio_mean(log_q, log_p, -alpha) / (1 - alpha)
    return _log_ratio_mean(log_p, log_q, alpha - 1) / alpha


def hr_loss_terms(logits: Tensor, target: Tensor, **options: Any) -> HRLossTerms:
    """
    The two terms of :func:`hr_loss`: H(Y^|X) and alpha D_alpha(p_XY || p_XY^).

    :param options: Those of :func:`hr_loss`.
    :return: Two tensors, scalars unless `reduction` is "none"; their sum is the loss.

    >>> hr_loss_terms(torch.tensor([[0.0, 0.0], [0.0, -torch.inf]]), torch.tensor([1, 0]))
    HRLossTerms(conditional_entropy=tensor(0.3466), renyi_divergence=tensor(0.3824))
    """
    chosen = LossOptions(**options)
    return _terms(*_checked(logits, target, chosen), chosen)


def hr_loss(
    logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 1.6,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "batch",
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """
    The HR loss, ``L_HR = H(Y^|X) + alpha D_alpha(p_XY || p_XY^)`` (eq. (3)).

    On a batch, with p_XY its empirical distribution,

        ``H(Y^|X)        = sum_i m_i [- sum_k q_ik log q_ik]``
        ``alpha D_alpha  = 1 / (alpha - 1) log sum_i m_i sum_k p_ik^alpha q_ik^(1 - alpha)``

    where p_i is the label distribution of example i and m_i its share of the batch. For class indices the inner sum is
    ``q_i,y_i^(1 - alpha)``. Every option is a choice of the distribution p_XY(i, k) under which both terms are taken:

    * `label_smoothing` s mixes each example's labels with the uniform distribution: (1 - s) p_ik + s / M;
    * `weight` reweighs the joint: p_XY(i, k) is proportional to w_k p_ik, so that m_i is proportional to sum_k w_k p_ik
      and p_i is normalised anew. For class indices without smoothing and alpha = 1 the divergence is then the weighted
      mean of CrossEntropyLoss; for probabilities CrossEntropyLoss divides by N instead of by the total weight;
    * `ignore_index` takes an example out of the distribution.

    The loss of the batch is *not* a mean over its examples: the logarithm couples them. The per-example loss, that of a
    batch of one, is ``u_i [H(q_i) + alpha D_alpha(p_i || q_i)]`` with u_i = sum_k w_k p_ik (1 without weights); for a
    class index without smoothing it is ``w_y [H(q_i) - log q_i,y]``, whatever alpha is.

    :param logits: Shape ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``, floating point.
    :param target: Class indices (integers, the logits' shape without C), or probabilities (the logits' shape, not
           negative; a row's sum is the example's weight; integers are taken as one-hot labels).
    :param alpha: Order of the divergence, finite and above 0; the paper's bound needs alpha > 1, alpha = 1 is the limit
           H + KL.
    :param weight: A weight per class, shape ``(C,)``, not negative.
    :param ignore_index: The class index whose examples count for nothing; has no meaning for probabilities.
    :param label_smoothing: Between 0 and 1.
    :param reduction: "batch" is eq. (3); "none", "mean" and "sum" are of the per-example loss, "mean" being weighted
           by u_i.
    :param process_group: Of torch.distributed: the batch is then that of all its processes, each of which passes its
           part, of any size, and gets the loss of the whole. The gradients are those of the loss times the number of
           processes, so that their mean, as DistributedDataParallel takes it, is the gradient of the whole. They can be
           taken once. For "none" nothing changes; "sum" is an error.
    :return: Nats, at least 0: a scalar, or with "none" the logits' shape without C. inf where a label that occurs has
             probability 0 (for alpha < 1 and a batch: where all of them have); NaN for "batch" and "mean" of no example
             at all, with zero gradients, as CrossEntropyLoss.
    :raises TypeError: If the logits are not floating point, or class indices not integers.
    :raises ValueError: If a shape or a parameter is out of range.
    :raises RuntimeError: If a class index is out of range; on a GPU torch reports it as it does for CrossEntropyLoss.

    >>> hr_loss(torch.tensor([[0.0, 0.0], [0.0, -torch.inf]]), torch.tensor([1, 0]))
    tensor(0.7289)
    """
    options = LossOptions(alpha, weight, ignore_index, label_smoothing, reduction, process_group)
    return hr_loss_of(logits, target, options)


def hr_loss_of(logits: Tensor, target: Tensor, options: LossOptions) -> Tensor:
    """Return :func:`hr_loss` with options that are validated already."""
    if has_torch_function((logits, target)):  # subclasses of Tensor, and the proxies of torch.fx
        return handle_torch_function(hr_loss_of, (logits, target), logits, target, options)
    logits, target, weight = _checked(logits, target, options)
    if can_fuse(logits, target, weight, options):
        return fused_loss(logits, target, weight, options, reference_loss)
    return reference_loss(logits, target, weight, options)


def reference_loss(logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions) -> Tensor:
    """Return the loss of checked arguments from operations that torch differentiates any number of times."""
    terms = _terms(logits, target, weight, options)
    return terms.conditional_entropy + terms.renyi_divergence


def example_terms(logits: Tensor, target: Tensor, options: LossOptions) -> tuple[Tensor, Tensor, Tensor]:
    """
    Return the terms of each example, shape ``(n,)``: H(q_i), alpha D_alpha(p_i || q_i), and the mass sum_k w_k p_ik.

    The loss of the batch is ``sum_i m_i H_i + 1 / (alpha - 1) log sum_i m_i exp((alpha - 1) D_i)``, with m_i the masses
    over their sum; the mass of an ignored example is 0.
    """
    entropy_, divergence, mass = _example_terms(*_checked(logits, target, options), options)
    return entropy_.reshape(-1), divergence.reshape(-1), mass.reshape(-1)


def _checked(logits: Tensor, target: Tensor, options: LossOptions) -> tuple[Tensor, Tensor, Tensor | None]:
    logits = check_logits(logits)
    weight = None if options.weight is None else check_weight_for(logits, options.weight)
    return logits, check_target(logits, target), weight


def _terms(logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions) -> HRLossTerms:
    *each, mass = _example_terms(logits, target, weight, options)
    if options.reduction in ("none", "sum"):
        terms = HRLossTerms(*(torch.where(mass == 0, 0.0, mass * term) for term in each))
        return terms if options.reduction == "none" else HRLossTerms(*(term.sum() for term in terms))
    uncertainty, divergence, mass = (term.reshape(-1) for term in (*each, mass))
    order = options.alpha - 1 if options.reduction == "batch" else 0.0
    sums = LOCAL
    if options.process_group is not None:
        if mass.requires_grad:  # its gradient would need the values of the other processes
            raise ValueError("expected weights and labels that require no gradients when a process group is given")
        sums = JointSums(options.process_group)
    log_mass = mass.log()
    return HRLossTerms(
        exponential_mean(uncertainty, log_mass, 0.0, sums), exponential_mean(divergence, log_mass, order, sums)
    )


def _example_terms(
    logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Return :func:`example_terms` in the shape of the logits without the class dimension, from checked arguments."""
    log_q = log_softmax(classes_last(logits))
    by_index = target.ndim < logits.ndim
    labels = target if by_index or target.ndim <= 2 else target.movedim(1, -1)
    if by_index and options.label_smoothing == 0:
        used = labels != options.ignore_index
        index = torch.where(used, labels, 0).unsqueeze(-1)
        divergence = torch.where(used, -log_q.gather(-1, index).squeeze(-1), 0.0)
        mass = (torch.ones_like(log_q) if weight is None else weight.expand_as(log_q)).gather(-1, index).squeeze(-1)
        return entropy(log_q), divergence, torch.where(used, mass, 0.0)
    joint = _joint(log_q, labels, weight, options)
    mass = joint.sum(-1)
    p = joint / torch.where(mass == 0, 1.0, mass).unsqueeze(-1)
    absent = p == 0
    log_p = torch.where(absent, -torch.inf, torch.where(absent, 1.0, p).log())
    divergence = torch.where(mass == 0, 0.0, _log_ratio_mean(log_p, log_q, options.alpha - 1))
    return entropy(log_q), divergence, mass


def _joint(log_q: Tensor, labels: Tensor, weight: Tensor | None, options: LossOptions) -> Tensor:
    """Return the weighted and smoothed labels w_k p_ik, shape ``(..., C)``; 0 for an ignored example."""
    smoothing, classes = options.label_smoothing, log_q.shape[-1]
    if labels.ndim == log_q.ndim:
        labels = labels.to(log_q.dtype)
        joint = labels * (1 - smoothing) + labels.sum(-1, keepdim=True) * (smoothing / classes)
    else:
        used = labels != options.ignore_index
        index = torch.where(used, labels, 0).unsqueeze(-1)
        joint = torch.full_like(log_q, smoothing / classes)
        joint = joint.scatter_add(-1, index, torch.full_like(log_q[..., :1], 1 - smoothing)) * used.unsqueeze(-1)
    return joint if weight is None else joint * weight


def _log_ratio_mean(log_p: Tensor, log_q: Tensor, order: float) -> Tensor:
    """Return ``1 / order log E_p[(p / q)^order]`` over the last dimension: alpha D_alpha for order alpha - 1."""
    possible = ~log_p.isneginf()
    absent = possible & log_q.isneginf()
    # Infinite ratios would make gradients of NaN out of shares of 0.
    infinite = absent.any(-1) if order >= 0 else (absent == possible).all(-1)
    finite = possible & ~absent
    ratio = torch.where(finite, log_p, 0.0) - torch.where(finite, log_q, 0.0)
    ratio = torch.where(absent & ~infinite.unsqueeze(-1), _FAR, ratio)
    return torch.where(infinite, math.inf, exponential_mean(ratio, log_p, order))
