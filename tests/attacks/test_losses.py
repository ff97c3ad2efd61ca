"""attacks._losses: values against plain float64 NumPy, gradients, extremes, and their place in ART."""

import copy

import numpy as np
import pytest
import torch
from testing import oracle
from torch.nn import CrossEntropyLoss

from art_hrloss import attack_view
from art_hrloss.attacks import DLRLoss, ExactCrossEntropy, MarginLoss, TargetedDLRLoss, attack_loss

NAMES = ("ce", "hr", "margin", "dlr")


def softmax(z):
    powers = np.exp(z - z.max())
    return powers / powers.sum()


def reference(name, logits, labels):
    """Each loss in loops over examples, as it is printed where it was published; the HR loss by the paper's oracle."""
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
    """Of 24 examples and 5 classes, float64; the labels are right on some and wrong on others."""
    return torch.tensor(np.random.default_rng(0).normal(0, 3, (24, 5)))


@pytest.fixture
def labels(logits):
    labels = torch.tensor(np.random.default_rng(1).integers(0, 5, 24))
    labels[:8] = logits[:8].argmax(1)
    return labels


@pytest.mark.parametrize("name", NAMES)
def test_values(name, logits, labels):
    values = attack_loss(name)(logits, labels)
    assert values.shape == (24,)
    np.testing.assert_allclose(values.numpy(), reference(name, logits.numpy(), labels.numpy()), rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name, logits, labels):
    assert torch.autograd.gradcheck(lambda z: attack_loss(name)(z, labels), logits.clone().requires_grad_())


@pytest.mark.parametrize("name", NAMES)
def test_a_step_up_the_loss_takes_a_right_example_nearer_to_being_misclassified(name, logits, labels):
    logits, labels = logits[:8], labels[:8]
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(attack_loss(name)(leaf, labels).sum(), leaf)
    margin = MarginLoss()
    assert (margin(logits + 1e-4 * gradient, labels) > margin(logits, labels)).all()


@pytest.mark.parametrize("name", NAMES)
def test_reductions(name, logits, labels):
    loss = attack_loss(name)
    assert loss.reduction == "none"
    values = loss(logits, labels)
    loss.reduction = "sum"
    assert loss(logits, labels).item() == pytest.approx(values.sum().item(), rel=1e-15)
    loss.reduction = "mean"
    assert loss(logits, labels).item() == pytest.approx(values.mean().item(), rel=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_no_example_sees_another(name, logits, labels):
    loss = attack_loss(name)
    together = loss(logits, labels)
    assert torch.equal(together, torch.cat([loss(z[None], y[None]) for z, y in zip(logits, labels, strict=True)]))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loss(logits[order], labels[order]), together[order])
    jacobian = torch.autograd.functional.jacobian(lambda z: loss(z, labels), logits)
    assert (jacobian[~torch.eye(24, dtype=torch.bool)] == 0).all()


@pytest.mark.parametrize("name", ["ce", "margin", "dlr"])
def test_under_vmap(name, logits, labels):
    loss = attack_loss(name)
    one_by_one = torch.vmap(lambda z, y: loss(z[None], y[None])[0])(logits, labels)
    torch.testing.assert_close(one_by_one, loss(logits, labels), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", [MarginLoss(), DLRLoss()], ids=["margin", "dlr"])
def test_above_0_exactly_where_misclassified(loss, logits, labels):
    wrong = logits.argmax(1) != labels
    assert 0 < wrong.sum() < 24
    assert torch.equal(loss(logits, labels) > 0, wrong)


def test_a_tie_has_margin_0():
    assert MarginLoss()(torch.tensor([[2.0, 2.0, 1.0]]), torch.tensor([1])) == 0


def test_the_margin_of_two_classes_of_which_one_is_infinitely_unlikely():
    logits = torch.tensor([[0.0, -torch.inf], [0.0, 3.0]], requires_grad=True)
    assert MarginLoss()(logits, torch.tensor([0, 0])).tolist() == [-torch.inf, 3.0]


def test_no_scale_or_shift_of_the_logits_changes_dlr(logits, labels):
    values = DLRLoss()(logits, labels)
    torch.testing.assert_close(DLRLoss()(1000 * logits, labels), values, rtol=1e-11, atol=0)
    torch.testing.assert_close(DLRLoss()(logits - 17.5, labels), values, rtol=1e-11, atol=0)
    # In float32, by a power of two: no rounding but that of the 1e-12.
    single = DLRLoss()(logits.float(), labels)
    torch.testing.assert_close(DLRLoss()(1024 * logits.float(), labels), single, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dlr_of_three_equal_logits_is_finite(dtype):
    logits = torch.tensor([[4.0, 4.0, 4.0, 1.0], [1.0, 4.0, 4.0, 4.0]], dtype=dtype, requires_grad=True)
    values = DLRLoss()(logits, torch.tensor([0, 0]))
    assert values[0] == 0
    assert values[1].item() == pytest.approx(3e12)  # on a wrong example, where an attack has no further to go
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    assert gradient.isfinite().all()


def test_dlr_needs_three_classes():
    with pytest.raises(ValueError, match="expected at least 3 classes for the DLR loss, but got 2"):
        DLRLoss()(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))


# --------------------------------------------------------------------------------------------------- the targeted DLR


@pytest.fixture
def pairs(logits, labels):
    """The labels, and a target of another class for each."""
    return torch.stack((labels, (labels + torch.arange(24) % 4 + 1) % 5), dim=1)


def test_the_targeted_dlr_loss_is_the_papers(logits, pairs):
    """Eq. (7) of Croce and Hein (2020), in float64 NumPy."""
    expected = []
    for z, (y, t) in zip(logits.numpy(), pairs.numpy(), strict=True):
        z1, _, z3, z4 = np.sort(z)[::-1][:4]
        expected.append(-(z[y] - z[t]) / (z1 - (z3 + z4) / 2 + 1e-12))
    np.testing.assert_allclose(TargetedDLRLoss()(logits, pairs).numpy(), expected, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda z: TargetedDLRLoss()(z, pairs), logits.clone().requires_grad_())


def test_no_scale_or_shift_of_the_logits_changes_the_targeted_dlr(logits, pairs):
    values = TargetedDLRLoss()(logits, pairs)
    torch.testing.assert_close(TargetedDLRLoss()(1000 * logits, pairs), values, rtol=1e-11, atol=0)
    torch.testing.assert_close(TargetedDLRLoss()(logits - 17.5, pairs), values, rtol=1e-11, atol=0)


def test_the_targeted_dlr_of_fewer_than_four_classes_is_a_difference_of_logits(logits, pairs):
    expected = logits[:, 1] - logits[:, 0]
    assert torch.equal(TargetedDLRLoss()(logits[:, :3], torch.tensor([[0, 1]] * 24)), expected)


def test_the_targeted_dlr_needs_a_class_and_a_target(logits, labels):
    with pytest.raises(ValueError, match=r"\(24, 2\)"):
        TargetedDLRLoss()(logits, labels)


# ------------------------------------------------------------------------------------------ the exact cross-entropy


def test_the_exact_cross_entropy_is_torchs_in_float64(logits, labels):
    leaf = logits.clone().requires_grad_()
    ours, torchs = ExactCrossEntropy()(leaf, labels), CrossEntropyLoss(reduction="none")(leaf, labels)
    torch.testing.assert_close(ours, torchs, rtol=1e-13, atol=1e-15)
    gradients = [torch.autograd.grad(values.sum(), leaf, retain_graph=True)[0] for values in (ours, torchs)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("margin", [20.0, 50.0, 80.0])
def test_the_exact_cross_entropy_in_float32_at_a_margin_that_torchs_loses(margin):
    # Two others at -margin and -margin - 1: the loss is log(1 + e^-margin (1 + 1/e)), and so on by hand.
    logits, y = torch.tensor([[0.0, -margin, -margin - 1]], requires_grad=True), torch.tensor([0])
    q = np.exp(-np.array([margin, margin + 1]))
    value = ExactCrossEntropy()(logits, y)
    assert value.item() == pytest.approx(np.log1p(q.sum()), rel=1e-5)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    expected = np.array([-q.sum(), *q]) / (1 + q.sum())
    np.testing.assert_allclose(gradient[0].numpy(), expected, rtol=1e-5)
    theirs = CrossEntropyLoss(reduction="none")(logits, y)
    assert theirs.item() == 0
    assert torch.autograd.grad(theirs.sum(), logits)[0][0, 0] == 0


def test_the_exact_cross_entropy_of_a_wrong_example():
    value = ExactCrossEntropy()(torch.tensor([[0.0, 80.0, 3.0]]), torch.tensor([0]))
    assert value.item() == pytest.approx(80.0, rel=1e-6)


# ---------------------------------------------------------------------------------------------------------- errors


def test_an_unknown_name():
    with pytest.raises(ValueError, match=r"'margin', 'dlr'.*'cw'"):
        attack_loss("cw")


@pytest.mark.parametrize("name", ["ce", "margin", "dlr"])
@pytest.mark.parametrize(
    ("labels", "came"),
    [
        (torch.eye(4), r"torch.float32 of shape \(4, 4\)"),
        (torch.zeros(4), r"torch.float32 of shape \(4,\)"),
        (torch.zeros(3, dtype=torch.long), r"torch.int64 of shape \(3,\)"),
        (torch.zeros(4, 1, dtype=torch.long), r"torch.int64 of shape \(4, 1\)"),
    ],
    ids=["one-hot", "floats", "too-few", "column"],
)
def test_labels_in_another_form(name, labels, came):
    with pytest.raises(ValueError, match=r"expected class indices of shape \(4,\), but got " + came):
        attack_loss(name)(torch.zeros(4, 4), labels)


# ---------------------------------------------------------------------------------------------------------- in ART


@pytest.mark.parametrize("form", ["indices", "one-hot"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("as_view", [False, True], ids=["HRClassifier", "attack_view"])
def test_as_the_attack_loss_of_a_classifier(hr_classifier, art_classifier, digits, name, form, as_view):
    x, y = digits.x_test[:12], digits.y_test[:12]
    loss = attack_loss(name)
    classifier = attack_view(art_classifier(), loss) if as_view else hr_classifier(attack_loss=loss)
    labels = y if form == "indices" else np.eye(10, dtype=np.float32)[y]

    network = copy.deepcopy(classifier.model).double()
    leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    logits = network(leaf)
    np.testing.assert_allclose(
        classifier.compute_loss(x, labels), reference(name, logits.detach().numpy(), y), rtol=1e-4, atol=1e-5
    )
    (expected,) = torch.autograd.grad(attack_loss(name)(logits, torch.tensor(y)).sum(), leaf)
    actual = classifier.loss_gradient(x, labels)
    size = np.abs(expected.numpy()).max((1, 2, 3), keepdims=True)
    assert (np.abs(actual - expected.numpy()) <= 1e-4 * size).all()
    assert classifier.attack_loss.reduction == "none"
