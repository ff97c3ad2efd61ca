"""Tests of attacks._losses: values against float64 NumPy, gradients, extreme logits, and use by ART."""

import copy

import numpy as np
import pytest
import torch
from testing import oracle
from torch.nn import CrossEntropyLoss

from art_hrloss import attack_view
from art_hrloss.attacks import DLRLoss, ExactCrossEntropy, MarginLoss, TargetedDLRLoss, TargetedMarginLoss, attack_loss

NAMES = ("ce", "hr", "margin", "dlr")


def softmax(z):
    powers = np.exp(z - z.max())
    return powers / powers.sum()


def reference(name, logits, labels):
    """Reference implementations, as published, in loops over examples; the HR loss is that of the oracle."""
    values = []
    for z, y in zip(np.asarray(logits, dtype=np.float64), labels, strict=True):
        others = max(z[k] for k in range(len(z)) if k != y)
        z1, _, z3 = sorted(z, reverse=True)[:3]
        values.append(
            {
                "ce": lambda z=z, y=y: -np.log(softmax(z)[y]),
                "hr": lambda z=z, y=y: oracle.hr_loss(z[None], [y], 1.6, "none")[0],
                "margin": lambda z=z, y=y, others=others: others - z[y],
                "dlr": lambda z=z, y=y, others=others, z1=z1, z3=z3: -(z[y] - others) / (z1 - z3 + 1e-12),
            }[name]()
        )
    return np.array(values, dtype=np.float64)


@pytest.fixture
def logits():
    """Float64 logits and labels of 24 examples and 5 classes; some examples are misclassified."""
    return torch.tensor(np.random.default_rng(0).normal(0, 3, (24, 5)))


@pytest.fixture
def labels(logits):
    labels = torch.tensor(np.random.default_rng(1).integers(0, 5, 24))
    labels[:8] = logits[:8].argmax(1)
    return labels


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_under_every_reduction(name, logits, labels):
    loss = attack_loss(name)
    assert loss.reduction == "none"
    values = loss(logits, labels)
    assert values.shape == (24,)
    np.testing.assert_allclose(values.numpy(), reference(name, logits.numpy(), labels.numpy()), rtol=1e-12)
    assert torch.autograd.gradcheck(lambda z: attack_loss(name)(z, labels), logits.clone().requires_grad_())
    if name != "hr":
        one_by_one = torch.vmap(lambda z, y: attack_loss(name)(z[None], y[None])[0])(logits, labels)
        torch.testing.assert_close(one_by_one, values, rtol=1e-12, atol=0)
    for reduction in ("sum", "mean"):
        loss.reduction = reduction
        assert loss(logits, labels).item() == pytest.approx(getattr(values, reduction)().item(), rel=1e-15)


def test_the_margin_of_two_classes_with_an_infinite_logit():
    logits = torch.tensor([[0.0, -torch.inf], [0.0, 3.0]], requires_grad=True)
    assert MarginLoss()(logits, torch.tensor([0, 0])).tolist() == [-torch.inf, 3.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dlr_of_three_equal_logits_is_finite(dtype):
    logits = torch.tensor([[4.0, 4.0, 4.0, 1.0], [1.0, 4.0, 4.0, 4.0]], dtype=dtype, requires_grad=True)
    values = DLRLoss()(logits, torch.tensor([0, 0]))
    assert values[0] == 0
    assert values[1].item() == pytest.approx(3e12)  # the example is misclassified: the attack has already succeeded
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    assert gradient.isfinite().all()


def test_the_targeted_losses_equal_the_paper_formulas(logits, labels):
    """Eq. (7) of Croce and Hein (2020), in float64 NumPy; with fewer than four classes, a difference of logits."""
    pairs = torch.stack((labels, (labels + torch.arange(24) % 4 + 1) % 5), dim=1)
    expected, margins = [], []
    for z, (y, t) in zip(logits.numpy(), pairs.numpy(), strict=True):
        z1, _, z3, z4 = np.sort(z)[::-1][:4]
        margins.append(z[t] - z[y])
        expected.append(margins[-1] / (z1 - (z3 + z4) / 2 + 1e-12))
    np.testing.assert_allclose(TargetedDLRLoss()(logits, pairs).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(TargetedMarginLoss()(logits, pairs).numpy(), margins, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda z: TargetedDLRLoss()(z, pairs), logits.clone().requires_grad_())
    few = TargetedDLRLoss()(logits[:, :3], torch.tensor([[0, 1]] * 24))
    assert torch.equal(few, logits[:, 1] - logits[:, 0])


@pytest.mark.parametrize("margin", [20.0, 50.0, 80.0])
def test_exact_cross_entropy_in_float32_at_a_margin_where_that_of_torch_is_0(margin):
    # The other logits are -margin and -margin - 1, so the loss is log(1 + e^-margin (1 + 1/e)); the others likewise.
    logits, y = torch.tensor([[0.0, -margin, -margin - 1]], requires_grad=True), torch.tensor([0])
    q = np.exp(-np.array([margin, margin + 1]))
    value = ExactCrossEntropy()(logits, y)
    assert value.item() == pytest.approx(np.log1p(q.sum()), rel=1e-5)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    expected = np.array([-q.sum(), *q]) / (1 + q.sum())
    np.testing.assert_allclose(gradient[0].numpy(), expected, rtol=1e-5)
    assert CrossEntropyLoss(reduction="none")(logits, y).item() == 0
    assert ExactCrossEntropy()(-logits, y).item() == pytest.approx(margin + 1 + np.log1p(np.exp(-1)), rel=1e-6)


WRONG_LABELS = {
    r"torch.float32 of shape \(4, 4\)": torch.eye(4),
    r"torch.float32 of shape \(4,\)": torch.zeros(4),
    r"torch.int64 of shape \(3,\)": torch.zeros(3, dtype=torch.long),
    r"torch.int64 of shape \(4, 1\)": torch.zeros(4, 1, dtype=torch.long),
}


def test_unknown_names_too_few_classes_and_other_labels_raise_an_error():
    with pytest.raises(ValueError, match=r"'margin', 'dlr'.*'cw'"):
        attack_loss("cw")
    with pytest.raises(ValueError, match="expected at least 3 classes for the DLR loss, but got 2"):
        DLRLoss()(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(4, 2\)"):
        TargetedDLRLoss()(torch.zeros(4, 4), torch.zeros(4, dtype=torch.long))
    for received, labels in WRONG_LABELS.items():
        for name in ("ce", "margin", "dlr"):
            with pytest.raises(ValueError, match=r"expected class indices of shape \(4,\), but got " + received):
                attack_loss(name)(torch.zeros(4, 4), labels)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("as_view", [False, True], ids=["HRClassifier", "attack_view"])
def test_attack_losses_in_a_classifier(hr_classifier, art_classifier, digits, name, as_view):
    x, y = digits.x_test[:12], digits.y_test[:12]
    loss = attack_loss(name)
    classifier = attack_view(art_classifier(), loss) if as_view else hr_classifier(attack_loss=loss)
    labels = np.eye(10, dtype=np.float32)[y] if as_view else y
    network = copy.deepcopy(classifier.model).double()
    leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    logits = network(leaf)
    expected = reference(name, logits.detach().numpy(), y)
    np.testing.assert_allclose(classifier.compute_loss(x, labels), expected, rtol=1e-4, atol=1e-5)
    (expected,) = torch.autograd.grad(attack_loss(name)(logits, torch.tensor(y)).sum(), leaf)
    size = np.abs(expected.numpy()).max((1, 2, 3), keepdims=True)
    assert (np.abs(classifier.loss_gradient(x, labels) - expected.numpy()) <= 1e-4 * size).all()
    assert classifier.attack_loss.reduction == "none"
