"""
The HR loss and its terms as pure functions of tensors.

Notation: ``q`` is the softmax of the logits (the soft decision), ``p`` the distribution of the labels, ``n`` the number
of examples, ``M`` the number of classes. Logarithms are natural, so all values are in nats. Equation numbers are those
of Picot, Piantanida, Messina and Labeau, "Modelling the Uncertainty of a Deep Neural Network Enhances its Adversarial
Robustness", GRETSI 2019.

Shapes follow :class:`torch.nn.CrossEntropyLoss`: logits are ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``, and each
position ``d1, ...`` is a separate example. float16 and bfloat16 inputs are computed and returned as float32.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.overrides import handle_torch_function, has_torch_function

from art_hrloss.losses._distributed import JointSums
from art_hrloss.losses._fused import can_fuse, fused_loss
from art_hrloss.losses._numerics import LOCAL, entropy, exponential_mean, log_ratio_mean, log_softmax
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


class HRLossTerms(NamedTuple):
    """
    The two terms of eq. (3), in nats; the loss is their sum.

    >>> import torch
    >>> from art_hrloss.losses import HRLossTerms
    >>> sum(HRLossTerms(torch.tensor(0.25), torch.tensor(0.5)))
    tensor(0.7500)
    """

    conditional_entropy: Tensor
    """H(Y^|X), from 0 to log M; a scalar, or one value per example with reduction "none"."""
    renyi_divergence: Tensor
    """alpha D_alpha(p_XY || p_XY^), at least 0, including the factor alpha; of the same shape."""


def softmax_entropy(logits: Tensor) -> Tensor:
    """
    Entropy of the softmax of each example, ``- sum_k q_k log q_k``.

    :param logits: Shape ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``; a logit of -inf is probability 0.
    :return: Nats in [0, log C], of the logits' shape without the class dimension.
    :raises TypeError: If the logits are not floating point.
    :raises ValueError: If they have no class dimension.

    >>> import torch
    >>> from art_hrloss.losses import softmax_entropy
    >>> softmax_entropy(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    tensor([0.6931, 0.5822])
    """
    return entropy(log_softmax(classes_last(logits)))


def conditional_entropy(logits: Tensor) -> Tensor:
    """
    Conditional entropy of the soft decision, ``H(Y^|X) = mean_i [- sum_k q_ik log q_ik]`` (section 2.1 of the paper).

    :param logits: Shape ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``; see :func:`softmax_entropy`.
    :return: A scalar in [0, log C], in nats.
    :raises TypeError: If the logits are not floating point.
    :raises ValueError: If they have no class dimension.

    >>> import torch
    >>> from art_hrloss.losses import conditional_entropy
    >>> conditional_entropy(torch.tensor([[0.0, 0.0], [0.0, -torch.inf]]))
    tensor(0.3466)
    """
    return softmax_entropy(logits).mean()


def renyi_divergence(log_p: Tensor, log_q: Tensor, *, alpha: float, dim: int = -1) -> Tensor:
    """
    Renyi divergence in the paper's scaling, ``1 / (alpha (alpha - 1)) log sum_k p_k^alpha q_k^(1 - alpha)`` (eq. (4)).

    Most libraries omit the paper's factor 1/alpha. At alpha = 1 the value is the limit, the Kullback-Leibler
    divergence. It is inf if an outcome with p > 0 has q = 0 (for alpha >= 1), or if all of them have (for alpha < 1).

    :param log_p: Log-probabilities of the first distribution, normalised along `dim`; -inf is probability 0.
    :param log_q: Log-probabilities of the second distribution, broadcastable with `log_p`.
    :param alpha: The order, finite and above 0.
    :param dim: The dimension of the outcomes.
    :return: Nats, at least 0 up to rounding, of the broadcast shape without `dim`.
    :raises TypeError: If alpha is not a number, or the tensors are not floating point.
    :raises ValueError: If alpha is not finite and above 0.

    >>> import torch
    >>> from art_hrloss.losses import renyi_divergence
    >>> p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.25, 0.75])
    >>> renyi_divergence(p.log(), q.log(), alpha=2)  # log(1 / 0.25) / 2
    tensor(0.6931)
    """
    alpha = check_alpha(alpha)
    log_p, log_q = as_float(log_p), as_float(log_q)
    log_p, log_q = torch.broadcast_tensors(log_p, log_q)
    log_p, log_q = log_p.movedim(dim, -1), log_q.movedim(dim, -1)
    if (
        alpha < 0.5
    ):  # D_alpha(p || q) = D_(1 - alpha)(q || p), and 1 - alpha is not near 0: no division by a small alpha
        return log_ratio_mean(log_q, log_p, -alpha) / (1 - alpha)
    return log_ratio_mean(log_p, log_q, alpha - 1) / alpha


def hr_loss_terms(logits: Tensor, target: Tensor, **options: Any) -> HRLossTerms:
    """
    Return the two terms of :func:`hr_loss`, H(Y^|X) and alpha D_alpha(p_XY || p_XY^).

    :param logits: See :func:`hr_loss`.
    :param target: See :func:`hr_loss`.
    :param options: The keyword arguments of :func:`hr_loss`.
    :return: Two tensors in nats, scalars unless `reduction` is "none"; their sum is the loss.
    :raises ValueError: If an argument is invalid, as in :func:`hr_loss`.

    >>> import torch
    >>> from art_hrloss.losses import hr_loss_terms
    >>> hr_loss_terms(torch.tensor([[0.0, 0.0], [0.0, -torch.inf]]), torch.tensor([1, 0]))
    HRLossTerms(conditional_entropy=tensor(0.3466), renyi_divergence=tensor(0.3824))
    """
    validated = LossOptions(**options)
    return _terms(*_checked(logits, target, validated), validated)


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

    For a batch, with p_XY its empirical distribution::

        H(Y^|X)        = sum_i m_i [- sum_k q_ik log q_ik]
        alpha D_alpha  = 1 / (alpha - 1) log sum_i m_i sum_k p_ik^alpha q_ik^(1 - alpha)

    where p_i is the label distribution of example i and m_i its share of the batch. For class indices the inner sum is
    ``q_i,y_i^(1 - alpha)``. The options change the distribution p_XY(i, k) of both terms:

    * `label_smoothing` s mixes the labels with the uniform distribution: (1 - s) p_ik + s / M;
    * `weight` makes p_XY(i, k) proportional to w_k p_ik: m_i is then proportional to sum_k w_k p_ik, and p_i is
      normalised again. For class indices without smoothing and alpha = 1 the divergence is the weighted mean of
      CrossEntropyLoss; for probabilities CrossEntropyLoss divides by N instead of by the total weight;
    * `ignore_index` removes examples from the distribution.

    The loss of the batch is *not* a mean over its examples, because the logarithm couples them. The per-example loss
    is the loss of a batch of one, ``u_i [H(q_i) + alpha D_alpha(p_i || q_i)]`` with ``u_i = sum_k w_k p_ik`` (1 without
    weights). For a class index without smoothing it is ``w_y [H(q_i) - log q_i,y]``, independent of alpha.

    :param logits: Shape ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``, floating point.
    :param target: Class indices (integers, the logits' shape without C), or probabilities (the logits' shape, not
           negative; the sum of a row is the weight of the example; integers are one-hot labels).
    :param alpha: Order of the divergence, finite and above 0. The paper's bound needs alpha > 1; alpha = 1 is the limit
           H + KL.
    :param weight: A weight per class, shape ``(C,)``, not negative.
    :param ignore_index: The class index whose examples are ignored; it has no effect on probabilities.
    :param label_smoothing: The share of the uniform distribution in the labels, between 0 and 1.
    :param reduction: "batch" is eq. (3). "none", "mean" and "sum" reduce the per-example loss; "mean" is weighted by
           u_i.
    :param process_group: A group of torch.distributed: the batch is the union of the parts of all its processes, which
           may have different sizes, and every process gets the loss of the joint batch. The gradients are those of the
           loss times the number of processes, so that the mean that DistributedDataParallel computes is the gradient of
           the joint batch; there are no second derivatives. "none" ignores the group; "sum" is an error.
    :return: Nats, at least 0: a scalar, or with "none" the logits' shape without C. inf if a label has probability 0
             (for alpha < 1 and "batch": if all labels have). NaN, with zero gradients as CrossEntropyLoss, for "batch"
             and "mean" if there is no example with a weight.
    :raises TypeError: If the logits are not floating point, or class indices are not integers.
    :raises ValueError: If a shape or a parameter is invalid.
    :raises RuntimeError: If a class index is out of range; on a GPU torch reports it as it does for CrossEntropyLoss.

    >>> import torch
    >>> from art_hrloss import hr_loss
    >>> hr_loss(torch.tensor([[0.0, 0.0], [0.0, -torch.inf]]), torch.tensor([1, 0]))
    tensor(0.7289)
    """
    options = LossOptions(alpha, weight, ignore_index, label_smoothing, reduction, process_group)
    return hr_loss_of(logits, target, options)


def hr_loss_of(logits: Tensor, target: Tensor, options: LossOptions) -> Tensor:
    """Return :func:`hr_loss` for validated options."""
    if has_torch_function((logits, target)):  # subclasses of Tensor, and proxies of torch.fx
        return handle_torch_function(hr_loss_of, (logits, target), logits, target, options)
    logits, target, weight = _checked(logits, target, options)
    if can_fuse(logits, target, weight, options):
        return fused_loss(logits, target, weight, options, reference_loss)
    return reference_loss(logits, target, weight, options)


def reference_loss(logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions) -> Tensor:
    """Return the loss of checked arguments, composed of operations that torch can differentiate any number of times."""
    terms = _terms(logits, target, weight, options)
    return terms.conditional_entropy + terms.renyi_divergence


def example_terms(logits: Tensor, target: Tensor, options: LossOptions) -> tuple[Tensor, Tensor, Tensor]:
    """
    Return three numbers per example, each of shape ``(n,)``: H(q_i), alpha D_alpha(p_i || q_i), and its mass.

    The mass is sum_k w_k p_ik, or 0 for an ignored example. The loss of the batch is ``sum_i m_i H_i + 1 / (alpha - 1)
    log sum_i m_i exp((alpha - 1) D_i)``, where m_i are the masses divided by their sum and D_i the second numbers.
    """
    uncertainty, divergence, mass = _example_terms(*_checked(logits, target, options), options)
    return uncertainty.reshape(-1), divergence.reshape(-1), mass.reshape(-1)


def _checked(logits: Tensor, target: Tensor, options: LossOptions) -> tuple[Tensor, Tensor, Tensor | None]:
    logits = check_logits(logits)
    weight = None if options.weight is None else check_weight_for(logits, options.weight)
    return logits, check_target(logits, target), weight


def _terms(logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions) -> HRLossTerms:
    uncertainty, divergence, mass = _example_terms(logits, target, weight, options)
    if options.reduction in ("none", "sum"):
        # An ignored example may have an infinite term, and 0 times infinity is NaN.
        terms = HRLossTerms(*(torch.where(mass == 0, 0.0, mass * term) for term in (uncertainty, divergence)))
        return terms if options.reduction == "none" else HRLossTerms(*(term.sum() for term in terms))
    uncertainty, divergence, mass = (term.reshape(-1) for term in (uncertainty, divergence, mass))
    # At order 0 the exponential mean is the arithmetic mean.
    order = options.alpha - 1 if options.reduction == "batch" else 0.0
    sums = LOCAL
    if options.process_group is not None:
        if mass.requires_grad:  # its gradient would need the values of the other processes
            raise ValueError(
                "expected weights and labels without requires_grad with a process group, but got some with"
            )
        sums = JointSums(options.process_group)
    log_mass = mass.log()
    return HRLossTerms(
        exponential_mean(uncertainty, log_mass, 0.0, sums), exponential_mean(divergence, log_mass, order, sums)
    )


def _example_terms(
    logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Return :func:`example_terms` of checked arguments, in the shape of the logits without the class dimension."""
    log_q = log_softmax(classes_last(logits))
    are_indices = target.ndim < logits.ndim
    labels = target if are_indices or target.ndim <= 2 else target.movedim(1, -1)
    if are_indices and options.label_smoothing == 0:
        used = labels != options.ignore_index
        index = torch.where(used, labels, 0).unsqueeze(-1)  # gather needs a valid index also for ignored examples
        divergence = torch.where(used, -log_q.gather(-1, index).squeeze(-1), 0.0)
        mass = (torch.ones_like(log_q) if weight is None else weight.expand_as(log_q)).gather(-1, index).squeeze(-1)
        return entropy(log_q), divergence, torch.where(used, mass, 0.0)
    joint = _joint(log_q, labels, weight, options)
    mass = joint.sum(-1)
    p = joint / torch.where(mass == 0, 1.0, mass).unsqueeze(-1)
    absent = p == 0
    # The inner where keeps log(0), whose gradient is infinite, out of the graph.
    log_p = torch.where(absent, -torch.inf, torch.where(absent, 1.0, p).log())
    divergence = torch.where(mass == 0, 0.0, log_ratio_mean(log_p, log_q, options.alpha - 1))
    return entropy(log_q), divergence, mass


def _joint(log_q: Tensor, labels: Tensor, weight: Tensor | None, options: LossOptions) -> Tensor:
    """Return the weighted and smoothed labels w_k p_ik, shape ``(..., C)``; all 0 for an ignored example."""
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
