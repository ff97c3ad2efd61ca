"""
The gradient of the HR loss of a batch that is too large for one pass through the network.

Gradients of the losses of its parts do not add up to it: the share of an example in the divergence's gradient is
``m_i exp((alpha - 1) D_i)`` over the sum of all, which must be known before the first of them. So the parts go through
the network twice, first without a graph.
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

    The result is that of ``loss(network(all), labels).backward()``, exact to rounding, in the memory of one part and
    with twice the passes forward. What the network draws at random, as in dropout, is the same in both. In training
    mode batch normalisation normalises each part by itself and counts it twice in its running statistics.

    :param network: Maps images to logits.
    :param parts: Images and their labels, as the loss takes them.
    :param loss: With reduction "batch" and no process group.
    :return: The loss of the joint batch, in nats, without a graph.
    :raises ValueError: If there is no part, or the loss has another reduction or a process group.

    >>> network, images, labels = nn.Linear(2, 3), torch.eye(2), torch.tensor([0, 2])
    >>> loss = backward_by_parts(network, [(images[:1], labels[:1]), (images[1:], labels[1:])], HRLoss())
    >>> torch.allclose(loss, HRLoss()(network(images), labels)), network.weight.grad.shape
    (True, torch.Size([3, 2]))
    """
    if not parts:
        raise ValueError("expected at least one part of the batch, but got none")
    if loss.reduction != "batch" or loss.process_group is not None:
        raise ValueError(f"expected a loss with reduction 'batch' and no process group, but got {loss}")
    states, each, options = [], [], options_of(loss)
    with torch.no_grad():
        for images, labels in parts:
            states.append(_random_state(images))
            each.append(example_terms(network(images), labels, options))
    entropy, divergence, mass = (torch.cat(terms) for terms in zip(*each, strict=True))
    entropy.requires_grad_()
    divergence.requires_grad_()
    value = exponential_mean(entropy, mass.log(), 0.0) + exponential_mean(divergence, mass.log(), loss.alpha - 1)
    by_entropy, by_divergence = torch.autograd.grad(value, (entropy, divergence))
    sizes = [len(terms[0]) for terms in each]
    shares = zip(by_entropy.split(sizes), by_divergence.split(sizes), strict=True)
    for (images, labels), state, share in zip(parts, states, shares, strict=True):
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            _set_random_state(state, images)
            torch.autograd.backward(example_terms(network(images), labels, options)[:2], share)
    return value.detach()


def _random_state(images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the states of torch's generators that the network may draw from."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(images.device) if images.is_cuda else None


def _set_random_state(state: tuple[Tensor, Tensor | None], images: Tensor) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], images.device)
