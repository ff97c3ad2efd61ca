"""Tests of art_hrloss._context: modes, gradients and generators are restored, also after an exception."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from art_hrloss import seeded
from art_hrloss._context import gradients_kept, in_mode, modes_kept


@pytest.fixture
def mixed():
    """A network in training mode with frozen batch statistics, and an LSTM with dropout between its layers."""
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LSTM(4, 4, num_layers=2, dropout=0.5))
    network[1].eval()
    return network


def modes(network):
    return [module.training for module in network.modules()]


def test_modes_of_each_module_are_restored_after_an_exception(mixed):
    before = modes(mixed)
    assert len(set(before)) == 2
    for context in (modes_kept(mixed), in_mode(mixed, False, backward=True), in_mode(mixed, True, backward=True)):
        with pytest.raises(ZeroDivisionError), context:
            0 / int(mixed.train(False).training)
        assert modes(mixed) == before
        assert mixed[2].dropout == 0.5


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_a_recurrent_layer_runs_backward_in_training_mode_without_dropout(mixed, training, backward):
    """The library cuDNN has no backward pass of recurrent layers in evaluation mode."""
    with in_mode(mixed, training, backward=backward):
        assert mixed[0].training == mixed[1].training == training
        assert mixed[2].training == (training or backward)
        assert mixed[2].dropout == (0.0 if backward and not training else 0.5)


def test_gradients_are_restored_as_the_same_tensors(mixed):
    weight, bias = mixed[0].parameters()
    weight.grad = kept = torch.ones_like(weight)
    with gradients_kept(mixed):
        weight.grad, bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
    assert weight.grad is kept
    assert bias.grad is None


def draws():
    return random.random(), np.random.random(), torch.rand(()).item()  # noqa: NPY002


def test_seeded_seeds_and_restores_all_three_generators():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    with seeded(3):
        first = draws()
    with pytest.raises(ZeroDivisionError), seeded(3):
        0 / (draws() != first)
    with seeded(4):
        assert all(one != other for one, other in zip(draws(), first, strict=True))
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
