"""
Gradient of the HR loss of a batch that is too large for one pass through the network.

The gradients of the losses of the parts do not add up to the gradient of the batch. The share of example i in the
gradient of the divergence is ``m_i exp((alpha - 1) D_i)`` divided by the sum over all examples, and this sum is needed
before the first backward pass. Therefore each part passes through the network twice, first without a graph.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from art_hrloss.losses._functional import example_terms
from art_hrloss.losses._module import HRLoss, options_of
from art_hrloss.losses._numerics import exponential_mean


def backward_by_parts(network: nn.Module, parts: Sequence[tuple[Tensor, Tensor]], loss: HRLoss) -> Tensor:
    """
    Add the gradient of the loss of the joint batch to `.grad` of the network's parameters.

    The gradient equals that of ``loss(network(images), labels).backward()`` for the joint batch, up to rounding. It
    needs the memory of one part, and two forward passes instead of one; random layers such as dropout draw the same
    numbers in both passes. In training mode, batch normalisation normalises each part separately and updates its
    running statistics twice per part.

    :param network: A module that maps images to logits.
    :param parts: The parts of the batch, each a pair of images and labels in the form that the loss takes.
    :param loss: An HRLoss with reduction "batch" and without a process group.
    :return: The loss of the joint batch, a scalar in nats, without a graph.
    :raises ValueError: If there is no part, or if the loss has another reduction or a process group.

    >>> import torch
    >>> from art_hrloss.losses import HRLoss, backward_by_parts
    >>> network, images, labels = torch.nn.Linear(2, 3), torch.eye(2), torch.tensor([0, 2])
    >>> loss = backward_by_parts(network, [(images[:1], labels[:1]), (images[1:], labels[1:])], HRLoss())
    >>> torch.allclose(loss, HRLoss()(network(images), labels)), network.weight.grad.shape
    (True, torch.Size([3, 2]))
    """
    if not parts:
        raise ValueError("expected at least one part of the batch, but got none")
    if loss.reduction != "batch" or loss.process_group is not None:
        raise ValueError(f"expected a loss with reduction 'batch' and no process group, but got {loss}")
    states, part_terms, options = [], [], options_of(loss)
    # First pass: the entropy and the divergence of every example, two numbers per example.
    with torch.no_grad():
        for images, labels in parts:
            states.append(_random_state(images))
            part_terms.append(example_terms(network(images), labels, options))
    entropy, divergence, mass = (torch.cat(terms) for terms in zip(*part_terms, strict=True))
    entropy.requires_grad_()
    divergence.requires_grad_()
    value = exponential_mean(entropy, mass.log(), 0.0) + exponential_mean(divergence, mass.log(), loss.alpha - 1)
    grad_entropy, grad_divergence = torch.autograd.grad(value, (entropy, divergence))
    sizes = [len(terms[0]) for terms in part_terms]
    gradients = zip(grad_entropy.split(sizes), grad_divergence.split(sizes), strict=True)
    # Second pass: by the chain rule, these derivatives are all that a part needs to know of the other parts.
    for (images, labels), state, gradient in zip(parts, states, gradients, strict=True):
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            _set_random_state(state, images)
            torch.autograd.backward(example_terms(network(images), labels, options)[:2], gradient)
    return value.detach()


def _random_state(images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the states of torch's generators on the CPU and on the device of the images."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(images.device) if images.is_cuda else None


def _set_random_state(state: tuple[Tensor, Tensor | None], images: Tensor) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], images.device)
