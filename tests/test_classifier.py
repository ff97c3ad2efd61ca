"""Tests of HRClassifier: evaluate, the attack loss in ART's methods, and the parameters."""

import copy
import inspect

import numpy as np
import pytest
import torch
from art.attacks import evasion
from art.estimators.classification import PyTorchClassifier
from torch import nn

import art_hrloss
from art_hrloss import HRClassifier, HRLoss, attack_view, hr_loss

BOTH = pytest.mark.parametrize("method", ["loss_gradient", "compute_loss"])
LINF = {"eps": 0.1, "eps_step": 0.04, "max_iter": 3, "verbose": False}
STOCK = {
    "FGSM": lambda c: evasion.FastGradientMethod(c, eps=0.1),
    "PGD-torch": lambda c: evasion.ProjectedGradientDescentPyTorch(c, **LINF),
    "PGD-numpy": lambda c: evasion.ProjectedGradientDescentNumpy(c, **LINF),
    "Auto-PGD": lambda c: evasion.AutoProjectedGradientDescent(c, nb_random_init=1, loss_type=None, **LINF),
}
OURS = {
    "our FGSM": lambda c: art_hrloss.FastGradientMethod(c, eps=0.1),
    "our PGD": lambda c: art_hrloss.ProjectedGradientDescent(c, **LINF),
    "our Auto-PGD": lambda c: art_hrloss.AutoProjectedGradientDescent(c, **LINF),
}
ATTACKS = pytest.mark.parametrize("attack", [*STOCK.values(), *OURS.values()], ids=[*STOCK, *OURS])


class PerExample(nn.Module):
    """A loss without a reduction: the cross-entropy of each example, from one-hot labels."""

    def forward(self, logits, labels):
        return -(labels * logits.log_softmax(1)).sum(1)


class Scalar(nn.Module):
    """A loss without a reduction that always couples the examples."""

    def forward(self, logits, labels):
        return nn.functional.cross_entropy(logits, labels)


class Raising(nn.Module):
    """A network or a loss that raises an error."""

    def forward(self, *_):
        raise ArithmeticError("this module fails")


class Mixed(nn.Module):
    """A network in training mode with frozen batch statistics, dropout, and an LSTM over the rows."""

    def __init__(self, head=None):
        super().__init__()
        self.lstm = nn.LSTM(8, 16, num_layers=2, dropout=0.5, batch_first=True)
        self.norm, self.dropout, self.head = nn.BatchNorm1d(16), nn.Dropout(0.5), head or nn.Linear(16, 10)
        nn.init.uniform_(self.norm.running_mean)
        self.train()
        self.norm.eval()

    def forward(self, x):
        return self.head(self.dropout(self.norm(self.lstm(x.squeeze(1))[0][:, -1])))


class Negated(HRLoss):
    """A loss whose maximisation increases the confidence of the network."""

    def forward(self, input, target):
        return -super().forward(input, target)


class Overridden(HRClassifier):
    """A subclass whose attacks always use cross-entropy."""

    def evaluate(self, x, labels, *, loss=None, gradient=True):
        return super().evaluate(x, labels, loss=nn.CrossEntropyLoss(), gradient=gradient)


@pytest.fixture
def halfway(hr_classifier, batch):
    """Images halfway through an attack, of which the network misclassifies some."""
    return evasion.FastGradientMethod(hr_classifier(), eps=0.1).generate(*batch), batch[1]


def seeded(build, *args, **options):
    torch.manual_seed(0)
    return build(*args, **options)


def generated(attack, x, y):
    with art_hrloss.seeded(0):
        return attack.generate(x, y)


def state(network):
    """Return everything that an attack could change in a network; gradients of parameters are compared by identity."""
    tensors = [*network.state_dict().values(), *(p.grad for p in network.parameters() if p.grad is not None)]
    modes = [module.training for module in network.modules()]
    return [t.tolist() for t in tensors], modes, [id(p.grad) for p in network.parameters()]


def one_hot(y, dtype=np.float32):
    return np.eye(10, dtype=dtype)[y]


def per_example_hr(logits, y):
    return hr_loss(logits, torch.as_tensor(y), reduction="none")


def autograd_gradient(network, x, value):
    """Return the gradient of the sum of value(network(x)) by x, in plain PyTorch and in the network's dtype."""
    images = torch.tensor(np.asarray(x)).to(next(network.parameters()).dtype).requires_grad_()
    return torch.autograd.grad(value(network(images)).sum(), images)[0].numpy()


def relative_error(actual, expected):
    """Return the largest error of an example, relative to the largest entry of the gradient of that example."""
    assert actual.shape == expected.shape
    actual, expected = (np.asarray(part, dtype=np.float64).reshape(len(part), -1) for part in (actual, expected))
    error, size = np.abs(actual - expected).max(1), np.abs(expected).max(1)
    assert (error[size == 0] == 0).all()
    return (error[size > 0] / size[size > 0]).max()


# ------------------------------------------------------------------------------------------------------------ evaluate


@pytest.mark.parametrize("loss", [None, nn.CrossEntropyLoss(), PerExample()], ids=["attack-loss", "ce", "module"])
def test_an_evaluation_returns_losses_logits_and_gradient(hr_classifier, network, halfway, loss):
    x, y = halfway
    classifier, images = hr_classifier(), torch.tensor(x)
    with classifier.attacking():
        point = classifier.evaluate(images, classifier.attack_labels(y, 40, loss), loss=loss)
    view = classifier if loss is None else attack_view(classifier, loss)
    np.testing.assert_array_equal(point.losses, view.compute_loss(x, y, batch_size=40))
    np.testing.assert_array_equal(point.logits, network(images).detach())
    np.testing.assert_array_equal(point.gradient, view.loss_gradient(x, y))
    assert point.slope is point.gradient
    assert not any(part.requires_grad for part in point)
    np.testing.assert_array_equal(images, x)


def test_an_evaluation_without_gradient_builds_no_graph(hr_classifier, network, batch):
    graphs = []
    network.register_forward_hook(lambda module, inputs, output: graphs.append(output.requires_grad))
    classifier = hr_classifier(network=network)
    labels = classifier.attack_labels(batch[1], 40)
    with classifier.attacking():
        points = [classifier.evaluate(torch.tensor(batch[0]), labels, gradient=wanted) for wanted in (True, False)]
    assert graphs == [True, False]
    assert points[1].gradient is None
    assert torch.equal(points[0].losses, points[1].losses)
    assert torch.equal(points[0].logits, points[1].logits)


@ATTACKS
def test_all_attacks_use_an_overridden_evaluate(network, batch, attack):
    options = {"input_shape": (1, 8, 8), "nb_classes": 10, "clip_values": (0, 1), "device_type": "cpu"}
    subclass = Overridden(network, HRLoss(), attack_loss=Negated(), **options)
    same, other = (
        HRClassifier(network, HRLoss(), attack_loss=loss, **options) for loss in (nn.CrossEntropyLoss(), Negated())
    )
    for result in (
        lambda c: c.loss_gradient(*batch),
        lambda c: c.compute_loss(*batch),
        lambda c: generated(attack(c), *batch),
    ):
        np.testing.assert_array_equal(result(subclass), result(same))
        assert not np.array_equal(result(subclass), result(other))


@ATTACKS
def test_an_observer_gets_every_evaluation(hr_classifier, network, batch, attack):
    """There is one evaluation per backward pass, and their values equal those of the classifier's methods."""
    x, y = batch
    seen, runs = [], []
    network.conv1.register_forward_pre_hook(lambda module, inputs: runs.append(inputs[0].requires_grad))
    classifier = hr_classifier(network=network)
    with classifier.observed_by(lambda x, *others: seen.append((x.clone(), *others))):
        attack(classifier).generate(x, y)
    points = [point for _, _, point in seen if point.gradient is not None]
    assert len(points) == sum(runs) > 0
    for images, labels, point in tuple(seen):
        np.testing.assert_array_equal(point.logits.argmax(1), classifier.predict(images.numpy()).argmax(1))
        if point.gradient is not None:  # otherwise it may be an evaluation of logits only, with another loss
            np.testing.assert_array_equal(point.losses, classifier.compute_loss(images, labels))
            assert torch.equal(point.gradient, classifier.loss_gradient(images, labels))


def test_observers_are_called_in_order_and_removed_also_after_an_exception(hr_classifier, batch):
    classifier, calls = hr_classifier(), []

    def failing(*_):
        calls.append("failing")
        raise ArithmeticError

    with classifier.observed_by(lambda *_: calls.append("first")):
        with pytest.raises(ArithmeticError), classifier.observed_by(failing):
            classifier.loss_gradient(*batch)
        classifier.compute_loss(*batch, batch_size=20)
    classifier.loss_gradient(*batch)
    assert calls == ["first", "failing", "first", "first"]


# --------------------------------------------------------------------------------------------------- gradients: values


def test_the_gradient_is_that_of_the_sum_of_per_example_losses(hr_classifier, network, batch):
    """It is H(q) - log q_y for class indices, for every alpha; an array for arrays, a tensor for tensors."""
    x, y = batch
    expected = autograd_gradient(network, x, lambda logits: per_example_hr(logits, y))
    for alpha in (1.0, 1.6, 10.0):
        gradient = hr_classifier(HRLoss(alpha)).loss_gradient(x, y)
        assert (type(gradient), gradient.dtype) == (np.ndarray, np.float32)
        assert relative_error(gradient, expected) < 1e-5
    gradient = hr_classifier().loss_gradient(torch.tensor(x), torch.tensor(y))
    assert gradient.dtype == torch.float32
    assert relative_error(gradient.numpy(), expected) < 1e-5
    soft = np.random.default_rng(0).dirichlet(np.ones(10), len(x))
    expected = autograd_gradient(network, x, lambda logits: per_example_hr(logits, torch.tensor(soft).float()))
    assert relative_error(hr_classifier().loss_gradient(x, soft), expected) < 1e-5


@pytest.mark.parametrize("size", [1, 7, 40])
def test_the_gradient_is_the_same_at_every_batch_size(hr_classifier, network, halfway, size):
    """
    Equal bit for bit, for a float64 network whose gradients are rounded to float32. For a float32 network they would
    be equal only up to rounding, because matrix products use different kernels for different batch sizes.
    """
    x, y = halfway
    for net, tolerance in [(copy.deepcopy(network).double(), 0.0), (network, 1e-4)]:
        classifier = hr_classifier(network=net)
        parts = [classifier.loss_gradient(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]
        assert relative_error(np.concatenate(parts), classifier.loss_gradient(x, y)) <= tolerance
        rows = np.repeat(np.random.default_rng(0).permutation(len(x)), 3)  # in any order, and with duplicates
        assert relative_error(classifier.loss_gradient(x[rows], y[rows]), classifier.loss_gradient(x, y)[rows]) <= (
            tolerance
        )


def test_in_a_pytorch_classifier_the_batch_loss_couples_the_images(art_classifier, hr_classifier, halfway):
    """The reason for HRClassifier: eq. (3) of a batch reverses the gradients of correctly classified images."""
    x, y = halfway

    def changed_signs(classifier):
        labels = one_hot(y)
        alone = np.concatenate([classifier.loss_gradient(x[i : i + 1], labels[i : i + 1]) for i in range(len(x))])
        return (np.sign(alone) != np.sign(classifier.loss_gradient(x, labels))).mean()

    assert changed_signs(art_classifier()) > 0.1
    assert changed_signs(hr_classifier()) < 1e-3


def test_training_mode_uses_dropout(hr_classifier, batch):
    x, y = batch
    network = seeded(nn.Sequential, nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10)).eval()
    classifier = hr_classifier(network=network)
    training = seeded(classifier.loss_gradient, x, y, training_mode=True)
    assert not any(module.training for module in network.modules())
    expected = seeded(autograd_gradient, network.train(), x, lambda logits: per_example_hr(logits, y))
    assert relative_error(training, expected) < 1e-5
    assert (training == 0).mean() > 0.4 > 0.01 > (classifier.loss_gradient(x, y) == 0).mean()


# ----------------------------------------------------------------------------------------- the losses and reductions


WEIGHT = torch.linspace(0.5, 2, 10)
# A loss, the number of outputs that it needs, and the form of its labels.
LOSSES = {
    "HR": (HRLoss(), 10, torch.as_tensor),
    "weighted HR": (HRLoss(1.3, weight=WEIGHT, label_smoothing=0.1), 10, torch.as_tensor),
    "weighted CE": (nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1), 10, torch.as_tensor),
    "weighted NLL": (nn.NLLLoss(weight=WEIGHT), 10, torch.as_tensor),
    "multi-margin": (nn.MultiMarginLoss(), 10, torch.as_tensor),
    "BCE, one output": (nn.BCEWithLogitsLoss(), 1, lambda y: torch.tensor(y[:, None] % 2).float()),
    "MSE": (nn.MSELoss(), 10, lambda y: torch.tensor(one_hot(y))),
}


@pytest.mark.parametrize(("loss", "outputs", "form"), LOSSES.values(), ids=LOSSES)
def test_reductions_of_attack_losses_do_not_depend_on_the_batch_size(
    hr_classifier, network, halfway, loss, outputs, form
):
    x, y = halfway
    after = {1: nn.Linear(10, 1)}.get(outputs, nn.LogSoftmax(1) if isinstance(loss, nn.NLLLoss) else nn.Identity())
    network = nn.Sequential(network, after)
    converted = y if outputs == 10 else y % 2
    classifier = hr_classifier(loss, network=network, nb_classes=max(2, outputs))
    logits, before = network(torch.tensor(x)).detach(), loss.reduction
    for reduction in ("none", "mean", "sum", *(["batch"] if isinstance(loss, HRLoss) else [])):
        reference = copy.copy(loss)
        reference.reduction = reduction
        expected = reference(logits, form(y))
        expected = expected.flatten(1).sum(1) if expected.ndim == 2 else expected
        for size in (1, 7, 1000):
            actual = classifier.compute_loss(x, converted, reduction, batch_size=size)
            assert actual.shape == expected.shape
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
        tensors = classifier.compute_loss(torch.tensor(x), torch.tensor(converted), reduction)
        torch.testing.assert_close(tensors, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="median"):
        classifier.compute_loss(x, converted, "median")
    reference.reduction = "sum"
    gradient = autograd_gradient(network, x, lambda logits: reference(logits, form(y)))
    assert relative_error(classifier.loss_gradient(x, converted), gradient) < 1e-4
    assert classifier.attack_loss is loss
    assert loss.reduction == before


def test_a_module_without_reduction_is_reduced(hr_classifier, batch):
    losses = nn.CrossEntropyLoss(reduction="none")
    plain, classifier = hr_classifier(losses), hr_classifier(attack_loss=PerExample())
    for reduction in ("none", "mean", "sum"):
        values = [c.compute_loss(*batch, reduction) for c in (classifier, plain)]
        np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-6)
    assert relative_error(classifier.loss_gradient(*batch), plain.loss_gradient(*batch)) < 1e-5
    with pytest.raises(ValueError, match="batch"):
        classifier.compute_loss(*batch, "batch")


@BOTH
def test_a_loss_with_one_value_per_batch_raises_an_error(hr_classifier, batch, method):
    with pytest.raises(ValueError, match=r"expected Scalar to return one value per example, shape \(40,\)"):
        getattr(hr_classifier(attack_loss=Scalar()), method)(*batch)


MASK = torch.ones(10).index_fill(0, torch.tensor(3), 0)  # a weight of 0 for class 3
IGNORING = {
    f"{kind.__name__}-{name}": kind(**{name: value})
    for kind in (nn.CrossEntropyLoss, HRLoss)
    for name, value in (("ignore_index", 3), ("weight", MASK))
} | {"NLLLoss": nn.NLLLoss(ignore_index=3), "MultiMarginLoss": nn.MultiMarginLoss(weight=MASK)}
IGNORED = (
    r"expected an attack loss .*, but got \w+, which ignores .*classes \[3\]\) because of ignore_index .*attack_loss="
)


@pytest.mark.parametrize("loss", IGNORING.values(), ids=IGNORING)
def test_an_attack_loss_that_ignores_images_raises_an_error(hr_classifier, batch, loss):
    """Ignored images have a gradient of 0: attacks would not change them, and they would look robust."""
    x, y = batch
    assert 3 in y
    pgd = art_hrloss.ProjectedGradientDescent
    for method in (
        hr_classifier(loss).loss_gradient,
        hr_classifier(loss, preprocessing=(0.3, 0.5)).loss_gradient,
        hr_classifier(loss).compute_loss,
        hr_classifier(attack_loss=loss).loss_gradient,
        evasion.ProjectedGradientDescent(hr_classifier(loss), **LINF).generate,
        pgd(hr_classifier(), loss=loss, **LINF).generate,
    ):
        for labels in (y, one_hot(y)):
            with pytest.raises(ValueError, match=IGNORED):
                method(x, labels)


@pytest.mark.parametrize("loss", IGNORING.values(), ids=IGNORING)
def test_a_loss_that_ignores_no_image_of_the_batch_is_accepted(hr_classifier, batch, loss):
    """So is a training loss that ignores images if attacks use another loss, and a loss with smoothed labels."""
    x, y = batch
    plain, others = type(loss)(), y != 3
    actual, expected = (hr_classifier(one).loss_gradient(x[others], y[others]) for one in (loss, plain))
    assert relative_error(actual, expected) < 1e-5
    followed = hr_classifier(loss, attack_loss=plain)
    np.testing.assert_array_equal(followed.loss_gradient(x, y), hr_classifier(plain).loss_gradient(x, y))
    smoothed = hr_classifier(nn.CrossEntropyLoss(weight=MASK, label_smoothing=0.1)).loss_gradient(x, y)
    assert (smoothed != 0).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, HRLoss])
def test_probabilities_are_ignored_only_if_all_their_classes_have_weight_0(hr_classifier, batch, kind):
    x, rows = batch[0], np.random.default_rng(0).dirichlet(np.ones(10), 40)
    assert (hr_classifier(kind(weight=MASK)).loss_gradient(x, rows) != 0).any(axis=(1, 2, 3)).all()
    rows[5] = one_hot(3)
    if kind is HRLoss:  # ignore_index has no effect on probabilities in HRLoss; CrossEntropyLoss raises an error
        assert (hr_classifier(kind(ignore_index=3)).loss_gradient(x, rows) != 0).any(axis=(1, 2, 3)).all()
    with pytest.raises(ValueError, match=r"1 of 40 images \(classes \[3\]\)"):
        hr_classifier(kind(weight=MASK)).loss_gradient(x, rows)


def test_compute_loss_evaluates_batches_without_a_graph(hr_classifier, network, batch):
    runs = []
    network.register_forward_hook(lambda module, inputs, output: runs.append((len(output), output.requires_grad)))
    for x, y in (batch, map(torch.tensor, batch)):
        hr_classifier(network=network).compute_loss(x, y, batch_size=16)
    assert runs == [(16, False), (16, False), (8, False)] * 2


def test_compute_loss_is_differentiable_for_a_tensor_that_requires_gradients(hr_classifier, batch):
    classifier, images = hr_classifier(), torch.tensor(batch[0], requires_grad=True)
    (gradient,) = torch.autograd.grad(classifier.compute_loss(images, batch[1], "sum", batch_size=7), images)
    assert relative_error(gradient.numpy(), classifier.loss_gradient(*batch)) < 1e-5
    with torch.no_grad():
        assert not classifier.compute_loss(images, batch[1]).requires_grad


def test_compute_losses_of_art_and_no_images_at_all(hr_classifier, batch):
    classifier = hr_classifier()
    losses = classifier.compute_losses(*batch, reduction="none")
    np.testing.assert_array_equal(losses["total"], classifier.compute_loss(*batch))
    x, y = (part[:0] for part in batch)
    assert classifier.loss_gradient(x, y).shape == (0, 1, 8, 8)
    assert classifier.compute_loss(x, one_hot(y)).shape == (0,)
    assert classifier.compute_loss(x, y, "sum") == 0.0


# -------------------------------------------------------------------------------------------------------- side effects


@ATTACKS
def test_an_attack_does_not_modify_the_network(hr_classifier, batch, attack):
    """ART's attacks call `predict`, which leaves the network in evaluation mode; the test excludes that effect."""
    network = seeded(Mixed)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
        parameter.register_hook(lambda gradient: pytest.fail("a parameter's gradient is computed"))
    before, x = state(network), batch[0].copy()
    classifier = hr_classifier(network=network)
    for method in (classifier.loss_gradient, classifier.compute_loss):
        method(*batch)
        assert state(network) == before
    attack(classifier).generate(*batch)
    assert (state(network)[0], state(network)[2]) == (before[0], before[2])
    assert network.lstm.dropout == 0.5
    np.testing.assert_array_equal(batch[0], x)
    with pytest.raises(pytest.fail.Exception):  # the hooks are active
        network(torch.tensor(x)).sum().backward()


@BOTH
def test_runs_in_evaluation_mode(hr_classifier, batch, method):
    network = seeded(Mixed)
    assert len({module.training for module in network.modules()}) == 2
    actual = getattr(hr_classifier(network=network), method)(*batch)
    network.eval()
    if method == "loss_gradient":
        expected = autograd_gradient(network, batch[0], lambda logits: per_example_hr(logits, batch[1]))
    else:
        expected = per_example_hr(network(torch.tensor(batch[0])), batch[1]).detach().numpy()
    assert relative_error(actual, expected) < 1e-5


@BOTH
@pytest.mark.parametrize(
    ("head", "attack_loss", "label", "error"),
    [
        pytest.param(Raising(), None, 3, ArithmeticError, id="network-fails"),
        pytest.param(None, Raising(), 3, ArithmeticError, id="loss-fails"),
        pytest.param(None, Scalar(), 3, ValueError, id="loss-is-a-scalar"),
        pytest.param(None, None, 10, ValueError, id="label-is-wrong"),
    ],
)
def test_everything_is_restored_after_an_exception(hr_classifier, batch, method, head, attack_loss, label, error):
    network = seeded(Mixed, head)
    before, loss = state(network), HRLoss()
    with pytest.raises(error):
        getattr(hr_classifier(loss, network=network, attack_loss=attack_loss), method)(batch[0], np.full(40, label))
    assert state(network) == before
    assert (loss.reduction, network.lstm.dropout, torch.is_grad_enabled()) == ("batch", 0.5, True)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
@ATTACKS
def test_attacks_run_in_all_gradient_modes_of_the_caller(hr_classifier, network, batch, attack, mode):
    """Evaluation code often runs in these modes."""
    expected = generated(attack(hr_classifier()), *batch)
    with mode():
        actual = generated(attack(hr_classifier(network=network.requires_grad_(False))), *batch)
        assert not torch.is_grad_enabled()
    np.testing.assert_array_equal(actual, expected)


@BOTH
@pytest.mark.parametrize("preprocessing", [None, (0.0, 1.0), (0.3, 0.5)], ids=["none", "identity", "standardised"])
def test_the_callers_tensors_are_unchanged(hr_classifier, network, batch, method, preprocessing):
    """Also for a network whose first layer works in place, and for tensors created in inference mode."""
    (x, y), begin = batch, nn.Hardtanh(0.2, 0.8, inplace=True)
    classifier = hr_classifier(
        network=nn.Sequential(begin, network), preprocessing=preprocessing, attack_loss=PerExample()
    )
    expected = getattr(classifier, method)(x, y)
    with torch.inference_mode():
        made_there = torch.tensor(x), torch.tensor(one_hot(y))
    for images, labels in (made_there, (torch.tensor(x), torch.tensor(y)), (torch.tensor(x, requires_grad=True), y)):
        actual = getattr(classifier, method)(images, labels)
        np.testing.assert_allclose(actual.detach(), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(images.detach(), x)
        assert images.grad is None
    np.testing.assert_array_equal(batch[0], x)


# ---------------------------------------------------------------------------------------------------------- parameters


def test_the_parameters_are_those_of_art_and_attack_loss():
    arts, ours = (inspect.signature(kind).parameters for kind in (PyTorchClassifier, HRClassifier))
    assert [*ours] == [*arts, "attack_loss"]
    assert ours["attack_loss"].kind is inspect.Parameter.KEYWORD_ONLY
    assert all((ours[name].default, ours[name].kind) == (arts[name].default, arts[name].kind) for name in arts)


@pytest.mark.parametrize("loss", [nn.functional.cross_entropy, hr_loss, HRLoss, "ce", None])
def test_a_loss_that_is_not_a_module_raises_an_error_in_the_constructor(hr_classifier, network, loss):
    classifier, options = hr_classifier(), {"input_shape": (1, 8, 8), "nb_classes": 10}
    calls = [lambda: HRClassifier(network, loss, **options), lambda: classifier.set_params(model=network, loss=loss)]
    if loss is not None:
        calls += [
            lambda: HRClassifier(network, HRLoss(), attack_loss=loss, **options),
            lambda: classifier.set_params(model=network, attack_loss=loss),
            lambda: attack_view(classifier, loss),
        ]
    for call in calls:
        with pytest.raises(TypeError, match=rf"loss to be a torch\.nn\.Module, but got {type(loss).__name__}"):
            call()
    assert classifier.model is not network


def test_attack_loss_follows_loss_unless_it_is_set(hr_classifier, batch):
    first, second, other = HRLoss(), nn.MultiMarginLoss(), nn.CrossEntropyLoss()
    following, fixed = hr_classifier(first), hr_classifier(first, attack_loss=other)
    assert (following.attack_loss, fixed.attack_loss) == (first, other)
    gradients = [hr_classifier(loss).loss_gradient(*batch) for loss in (second, other)]
    for classifier, expected in zip((following, fixed), gradients, strict=True):
        classifier.set_params(loss=second)
        np.testing.assert_array_equal(classifier.loss_gradient(*batch), expected)
    fixed.set_params(attack_loss=None)
    assert (following.attack_loss, fixed.attack_loss) == (second, second)


@pytest.mark.parametrize("losses", [[nn.MSELoss, HRLoss, nn.MSELoss], [HRLoss, nn.MSELoss, nn.MultiMarginLoss, HRLoss]])
def test_a_new_loss_gets_labels_in_its_form(hr_classifier, batch, losses):
    """ART would keep the form of the first loss: MSELoss would get class indices, MultiMarginLoss one-hot labels."""
    x, y = batch
    classifier = hr_classifier(losses[0]())
    for loss in losses:
        classifier.set_params(loss=loss())
        fresh, before = hr_classifier(loss(), network=copy.deepcopy(classifier.model)), classifier.predict(x)
        for one in (classifier, fresh):
            one.set_params(optimizer=torch.optim.SGD(one.model.parameters(), lr=1e-3))
            seeded(one.fit, x, y, nb_epochs=1)
        np.testing.assert_array_equal(classifier.predict(x), fresh.predict(x))
        assert not np.array_equal(classifier.predict(x), before)


def test_get_params_and_set_params_are_inverse(hr_classifier, batch):
    classifier = hr_classifier(attack_loss=nn.CrossEntropyLoss(), preprocessing=(0.3, 0.5))
    params, gradient = classifier.get_params(), classifier.loss_gradient(*batch)
    other = hr_classifier()
    assert other.get_params()["attack_loss"] is None
    for one in (classifier, other):
        one.set_params(**params)
        assert {name: one.get_params()[name] for name in ("model", "loss", "attack_loss", "optimizer")} == {
            name: params[name] for name in ("model", "loss", "attack_loss", "optimizer")
        }
        np.testing.assert_array_equal(one.loss_gradient(*batch), gradient)


@pytest.mark.parametrize("attack_loss", [None, nn.CrossEntropyLoss()], ids=["follows", "set"])
def test_clone_for_refitting_has_a_new_network_and_the_same_parameters(hr_classifier, batch, attack_loss):
    x, y = batch
    classifier = hr_classifier(nn.MSELoss(), attack_loss=attack_loss, preprocessing=(0.3, 0.5))
    classifier.set_params(loss=HRLoss())
    predictions, clone = classifier.predict(x), seeded(classifier.clone_for_refitting)
    assert type(clone) is HRClassifier
    assert (clone.loss, clone.get_params()["attack_loss"]) == (classifier.loss, attack_loss)
    assert clone.preprocessing is classifier.preprocessing
    np.testing.assert_array_equal(clone.clip_values, classifier.clip_values)
    for new, old in zip(clone.model.parameters(), classifier.model.parameters(), strict=True):
        assert not torch.equal(new, old)
    fresh = clone.predict(x)
    clone.fit(x, y, nb_epochs=1)  # HRLoss would reject one-hot labels of MSELoss in int64
    assert not np.array_equal(clone.predict(x), fresh)
    np.testing.assert_array_equal(classifier.predict(x), predictions)
