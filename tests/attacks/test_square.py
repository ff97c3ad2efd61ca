"""attacks._square: ART's Square attack and its images, at a third of its price."""

import numpy as np
import pytest
import torch
from art.attacks.evasion import SquareAttack
from testing.networks import Counting
from torch import nn

from art_hrloss.attacks._square import Square
from art_hrloss.attacks._worst_case import seeded

EPS = {np.inf: 0.15, 2: 2.5}


@pytest.fixture
def large(digits):
    """Images of 16 x 16 pixels, because the attack in norm 2 refuses smaller ones."""
    return np.kron(digits.x_test[:60], np.ones((2, 2), dtype=np.float32)), digits.y_test[:60]


class Shrinking(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(nn.functional.avg_pool2d(x, 2))


def made(kind, classifier, x, y, norm=np.inf, **options):
    options = {"max_iter": 40, "nb_restarts": 1, "batch_size": 60, **options}
    with seeded(3), np.errstate(divide="ignore", invalid="ignore"):
        return kind(classifier, norm=norm, eps=EPS[norm], verbose=False, **options).generate(x, y)


@pytest.mark.parametrize("restarts", [1, 2])
@pytest.mark.parametrize("norm", [np.inf, 2], ids=["inf", "2"])
def test_its_images_are_arts_and_cost_a_third(art_classifier, network, large, norm, restarts):
    x, y = large
    counting = Counting(Shrinking(network))
    classifier = art_classifier(network=counting, input_shape=(1, 16, 16))
    theirs = made(SquareAttack, classifier, x, y, norm, nb_restarts=restarts)
    price, counting.forwards = counting.forwards, 0
    ours = made(Square, classifier, x, y, norm, nb_restarts=restarts)
    assert 5 < (classifier.predict(theirs).argmax(1) != y).sum() < 55
    # In other batches sums round otherwise, which may decide about a change of no effect.
    assert (theirs == ours).reshape(60, -1).all(1).mean() > 0.95
    assert counting.forwards < price / 3 + 60


def test_a_query_is_one_image_that_is_new(hr_classifier, network, digits):
    """Nothing breaks, so that each query asks about every image; some come to look as they did."""
    asked, x = [], digits.x_test[:20]
    network.register_forward_pre_hook(lambda _, inputs: asked.extend(image.numpy().tobytes() for image in inputs[0]))
    classifier = hr_classifier(network=network)
    y = classifier.predict(x).argmax(1)
    asked.clear()
    with seeded(0):
        Square(classifier, norm=np.inf, eps=0.01, max_iter=30, nb_restarts=1, verbose=False).generate(x, y)
    assert asked[:40] == [image.tobytes() for image in x] * 2  # twice, to see whether it answers the same
    assert len(asked) <= 20 * (30 + 3)


class Noisy(nn.Module):
    """Logits that no two calls give alike."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        logits = self.network(x)
        return logits + torch.randn_like(logits)


def test_a_network_that_answers_at_random_is_asked_every_time(art_classifier, network, digits):
    counting = Counting(Noisy(network))
    classifier = art_classifier(network=counting)
    prices = []
    for kind in (SquareAttack, Square):
        counting.forwards = 0
        images = made(kind, classifier, digits.x_test[:60], digits.y_test[:60])
        prices.append((counting.forwards, images.tobytes()))
    assert prices[0] == prices[1]


class Failing(nn.Module):
    def __init__(self, network, after):
        super().__init__()
        self.network, self.after = network, after

    def forward(self, x):
        self.after -= 1
        if self.after < 0:
            raise ArithmeticError("this network fails")
        return self.network(x)


@pytest.mark.parametrize("own", [False, True], ids=["its class's", "its own"])
def test_the_classifier_is_left_as_it_was(art_classifier, network, digits, own):
    classifier = art_classifier(network=Failing(network, 5))
    if own:
        classifier.predict = classifier.predict
    before = dict(vars(classifier))
    with pytest.raises(ArithmeticError, match="this network fails"):
        made(Square, classifier, digits.x_test[:10], digits.y_test[:10])
    assert vars(classifier) == before
