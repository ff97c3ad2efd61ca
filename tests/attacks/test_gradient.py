"""Tests of attacks._gradient: FGSM and PGD return ART's images with one evaluation per iterate."""

import numpy as np
import pytest
import torch
from art.attacks.evasion import ProjectedGradientDescentPyTorch
from art.defences.trainer import AdversarialTrainer, AdversarialTrainerTRADESPyTorch
from art.summary_writer import SummaryWriter
from testing.networks import Root
from torch import nn

from art_hrloss.attacks import FastGradientMethod, ProjectedGradientDescent

TWO = {"norm": 2, "eps": 1.2, "eps_step": 0.5}
ONE = {"norm": 1, "eps": 6.0, "eps_step": 2.0}
SIZES = np.linspace(0.05, 0.2, 64, dtype=np.float32).reshape(1, 8, 8)
PER_IMAGE = np.linspace(0.02, 0.3, 50).reshape(-1, 1, 1, 1)
LEFT_HALF = np.repeat([[True] * 4 + [False] * 4], 8, axis=0)[np.newaxis]
MASK_PER_IMAGE = np.stack([np.roll(LEFT_HALF, shift, axis=2) for shift in range(50)]).astype(np.float64)
# From the second attempt on, ART passes tensors to NumPy, which warns.
TENSORS_TO_NUMPY = "ignore:__array:DeprecationWarning"

FGM = [
    pytest.param({}, id="defaults"),
    pytest.param({"norm": "inf", "num_random_init": 1}, id="random"),
    pytest.param({"num_random_init": 3}, id="3-random"),
    pytest.param({"eps": SIZES, "eps_step": SIZES}, id="eps-per-pixel"),
    pytest.param({"mask": LEFT_HALF, "num_random_init": 1}, id="mask"),
    pytest.param({"mask": MASK_PER_IMAGE}, id="mask-per-image"),
    pytest.param({"minimal": True, "eps_step": 0.05}, id="minimal"),
    pytest.param({"batch_size": 7}, id="batches-of-7"),
]
PGD = [
    pytest.param({}, id="defaults"),
    pytest.param({"num_random_init": 1}, id="random"),
    pytest.param({"num_random_init": 3, "max_iter": 2}, id="3-random"),
    pytest.param({"max_iter": 1}, id="1-step"),
    pytest.param({"num_random_init": 1, **TWO}, id="L2"),
    pytest.param({**TWO, "eps": 1}, id="L2-integer-eps"),
    pytest.param({"num_random_init": 1, **ONE}, id="L1"),
    pytest.param({**TWO, "norm": 1.5}, id="L1.5"),
    pytest.param({"decay": 0.9}, id="momentum"),
    pytest.param({"decay": 0.5, **TWO}, id="momentum-L2"),
    pytest.param({"eps": SIZES, "eps_step": SIZES / 3}, id="eps-per-pixel"),
    pytest.param({"eps": PER_IMAGE, "eps_step": PER_IMAGE / 3}, id="eps-per-image"),
    pytest.param({"norm": 2, "eps": 9 * PER_IMAGE, "eps_step": 3 * PER_IMAGE}, id="L2-eps-per-image"),
    pytest.param({"mask": LEFT_HALF, "num_random_init": 1}, id="mask"),
    pytest.param({"mask": MASK_PER_IMAGE, **TWO}, id="L2-mask-per-image"),
    pytest.param({"random_eps": True}, id="random-eps"),
    pytest.param({"batch_size": 7, "max_iter": 2}, id="batches-of-7"),
]
FGM_ROUNDED = [
    pytest.param({"eps": PER_IMAGE, "eps_step": PER_IMAGE}, id="eps-per-image-float64"),
    pytest.param({**TWO, "num_random_init": 1}, id="L2"),
    pytest.param(ONE, id="L1"),
    pytest.param({**TWO, "norm": 3}, id="L3"),
]


@pytest.mark.filterwarnings(TENSORS_TO_NUMPY)
@pytest.mark.parametrize(
    ("attack_kind", "options", "exact", "classifier", "targeted"),
    [
        pytest.param(kind, *p.values, exact, classifier, targeted, id=f"{classifier}-{kind.__name__}-{p.id}-{targeted}")
        for kind, exact, table in (
            (FastGradientMethod, True, FGM),
            (ProjectedGradientDescent, True, PGD),
            (FastGradientMethod, False, FGM_ROUNDED),
        )
        for p in table
        for classifier, targeted in (("HRClassifier", False), ("HRClassifier", True), ("ART's", False))
        # Every parameter once, and some combinations.
        if (classifier, targeted) == ("HRClassifier", False) or p.id in ("defaults", "3-random", "minimal", "L2", "L1")
    ],
)
def test_images_equal_those_of_art_bit_for_bit(
    hr_classifier, art_classifier, both, x, y, classifier, attack_kind, options, exact, targeted
):
    """
    Images are equal up to the rounding that the module documents.

    ART's classifier has the gradient of the loss of the batch. For a mean, only the L-infinity norm gives the same
    images. For a sum, it is the gradient of each image's own loss, and all norms give the same images.
    """
    reduction = "mean" if options.get("norm", np.inf) in (np.inf, "inf") else "sum"
    estimator = (
        hr_classifier() if classifier == "HRClassifier" else art_classifier(nn.CrossEntropyLoss(reduction=reduction))
    )
    ours, arts = both(attack_kind, estimator, x, (y + 1) % 10 if targeted else y, targeted=targeted, **options)
    np.testing.assert_allclose(ours, arts, rtol=0, atol=0 if exact else 1e-6)


def test_random_starts_with_an_eps_per_image(hr_classifier, attacked, x, y):
    """ART raises an error for it, because it broadcasts eps with flattened images."""
    for norm, factor in ((np.inf, 1), (2, 9)):
        eps = factor * PER_IMAGE
        with pytest.raises((ValueError, NotImplementedError)):
            attacked(
                ProjectedGradientDescentPyTorch,
                hr_classifier(),
                x,
                y,
                norm=norm,
                eps=eps,
                eps_step=eps,
                num_random_init=1,
            )
        images = attacked(
            ProjectedGradientDescent,
            hr_classifier(),
            x,
            y,
            norm=norm,
            eps=eps,
            eps_step=eps / 3,
            restarts=2,
            keep_first=True,
        )
        change = np.linalg.norm((images.astype(np.float64) - x).reshape(50, -1), ord=norm, axis=1)
        assert (change <= eps.ravel() * (1 + 1e-5)).all()
        assert np.corrcoef(change, eps.ravel())[0, 1] > 0.7


@pytest.mark.parametrize("attack_kind", [FastGradientMethod, ProjectedGradientDescent])
@pytest.mark.parametrize("norm", [np.inf, 2])
def test_nan_in_a_gradient_is_replaced_by_0_with_a_warning(
    hr_classifier, network, both, attacked, x, y, attack_kind, norm, caplog
):
    """The derivative of the root at 0 is infinite, and that of the square is 0: their product is NaN."""
    classifier = hr_classifier(network=nn.Sequential(Root(), network))
    assert np.isnan(classifier.loss_gradient(x, y)).any()
    ours, arts = both(attack_kind, classifier, x, y, norm=norm)
    np.testing.assert_allclose(ours, arts, rtol=0, atol=0 if norm == np.inf else 1e-6)
    assert any(r.name.startswith("art_hrloss") and "NaN" in r.getMessage() for r in caplog.records)
    caplog.clear()
    attacked(attack_kind, hr_classifier(), x, y, norm=norm)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("attack_kind", "options", "forward", "backward"),
    [
        pytest.param(FastGradientMethod, {}, [32, 18], [32, 18], id="FGM"),
        pytest.param(FastGradientMethod, {"num_random_init": 1}, [32, 18], [32, 18], id="FGM-random"),
        pytest.param(ProjectedGradientDescent, {}, [32] * 5 + [18] * 5, [32] * 5 + [18] * 5, id="PGD"),
        # One clean prediction, and one prediction per additional attempt.
        pytest.param(
            ProjectedGradientDescent,
            {"num_random_init": 3, "batch_size": 50},
            [50] * 5 + [50] + 2 * ([50] * 5 + [50]),
            [50] * 15,
            id="PGD-3-random",
        ),
    ],
)
def test_each_iterate_is_evaluated_once(hr_classifier, passes, attacked, x, y, attack_kind, options, forward, backward):
    attacked(attack_kind, hr_classifier(network=passes.network), x, y, **options)
    assert (passes.forward, passes.backward) == (forward, backward)


def test_pgd_without_a_step_returns_a_copy_of_the_images(hr_classifier, attacked, x, y):
    images = attacked(ProjectedGradientDescent, hr_classifier(), x, y, max_iter=0, num_random_init=1)
    np.testing.assert_array_equal(images, x)
    assert not np.shares_memory(images, x)


class Recorder(SummaryWriter):
    """A summary writer that records its calls instead of writing files."""

    def __init__(self):
        self.calls, self.resets = [], 0

    def update(self, batch_id, global_step, grad=None, patch=None, estimator=None, x=None, y=None, targeted=False):
        self.calls.append((batch_id, global_step, targeted, estimator, np.array(grad), np.array(x), np.array(y)))

    def reset(self):
        self.resets += 1


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("attack_kind", [FastGradientMethod, ProjectedGradientDescent])
def test_the_summary_writer_gets_the_calls_of_art(hr_classifier, arts, attacked, x, y, attack_kind, targeted):
    classifier, y = hr_classifier(), (y + 1) % 10 if targeted else 0.7 * np.eye(10)[y] + 0.03
    calls = []
    for one in (attack_kind, arts[attack_kind]):
        recorder = Recorder()
        attacked(one, classifier, x, y, targeted=targeted, summary_writer=recorder)
        assert recorder.resets == 1
        calls.append(recorder.calls)
    assert len(calls[0]) == len(calls[1]) == (2 if attack_kind is FastGradientMethod else 10)
    for ours, theirs in zip(*calls, strict=True):
        assert ours[:4] == theirs[:4]
        for values, expected in zip(ours[4:], theirs[4:], strict=True):
            np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("trainer", "attack_kind"),
    [(AdversarialTrainer, FastGradientMethod), (AdversarialTrainerTRADESPyTorch, ProjectedGradientDescent)],
)
def test_trainers_of_art_train_with_hr_loss(hr_classifier, arts, attack, digits, trainer, attack_kind):
    """The trainers get the images of ART's attack. One step only, because the order of sums in training may differ."""
    images, predictions = [], []
    for one in (attack_kind, arts[attack_kind]):
        classifier = hr_classifier(nn.CrossEntropyLoss())
        inner = attack(one, classifier, batch_size=64)
        generate = inner.generate
        inner.generate = lambda x, y=None, generate=generate: images.append(generate(x, y)) or images[-1]
        options = {"ratio": 1.0} if trainer is AdversarialTrainer else {"beta": 1.0}
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        labels = np.eye(10, dtype=np.float32)[digits.y_train[:64]]
        trainer(classifier, inner, **options).fit(digits.x_train[:64], labels, batch_size=64, nb_epochs=1)
        predictions.append(classifier.predict(digits.x_test[:50]))
    np.testing.assert_array_equal(*images)
    np.testing.assert_allclose(*predictions, rtol=0, atol=1e-4)
    assert not np.allclose(predictions[0], hr_classifier().predict(digits.x_test[:50]), atol=1e-2)
