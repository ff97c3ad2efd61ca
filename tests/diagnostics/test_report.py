"""diagnostics._report and flags: what is flagged and what is not, on networks trained here on real digits."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from art.defences.preprocessor import FeatureSqueezing, JpegCompression, SpatialSmoothing
from art.defences.trainer import AdversarialTrainer
from art.estimators.classification import PyTorchClassifier
from testing.networks import Counting, Scaled
from torch import nn

from art_hrloss import HRClassifier
from art_hrloss.attacks._gradient import ProjectedGradientDescent
from art_hrloss.diagnostics._flags import weaker
from art_hrloss.diagnostics._measurements import Gradients, Target
from art_hrloss.diagnostics._report import GradientMaskingReport, gradient_masking_report

EPS = 0.1
QUICK = {"eps": EPS, "max_iter": 10, "square_iter": 40, "noise_draws": 5}
# For what no attack can change.
LEAST = {"eps": EPS, "max_iter": 1, "square_iter": 0, "noise_draws": 0}


def _reset(network, seed):
    """The weights that a new network has under this seed."""
    torch.manual_seed(seed)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return network


def _trained(network, seed, digits):
    """Ten epochs of cross-entropy."""
    with torch.random.fork_rng():
        network = _reset(network, seed).train()
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        images, labels = torch.tensor(digits.x_train), torch.tensor(digits.y_train)
        for _ in range(10):
            for batch in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
                optimizer.step()
    return network.eval()


def _hardened(network, seed, digits):
    """Eight epochs of ART's adversarial training."""
    state = np.random.get_state()  # noqa: NPY002  # ART draws from it
    with torch.random.fork_rng():
        network = _reset(network, seed)
        np.random.seed(seed)  # noqa: NPY002
        classifier = HRClassifier(
            network,
            nn.CrossEntropyLoss(),
            input_shape=(1, 8, 8),
            nb_classes=10,
            optimizer=torch.optim.Adam(network.parameters(), lr=5e-3),
            clip_values=(0.0, 1.0),
            device_type="cpu",
        )
        options = {"eps": EPS, "eps_step": EPS / 3, "max_iter": 5, "num_random_init": 1}
        attack = ProjectedGradientDescent(classifier, batch_size=64, verbose=False, **options)
        trainer = AdversarialTrainer(classifier, attack, ratio=1.0)
        trainer.fit(digits.x_train, digits.y_train, batch_size=64, nb_epochs=8)
    np.random.set_state(state)  # noqa: NPY002
    return network.eval()


@pytest.fixture(scope="module")
def honest_networks(trained_network, digits):
    """Two of different seeds."""
    return [_trained(copy.deepcopy(trained_network), seed, digits) for seed in (0, 1)]


@pytest.fixture(scope="module")
def hardened_networks(trained_network, digits):
    """Two of different seeds."""
    return [_hardened(copy.deepcopy(trained_network), seed, digits) for seed in (0, 1)]


@pytest.fixture
def honest_network(honest_networks):
    """The first."""
    return honest_networks[0]


@pytest.fixture
def examples(digits):
    """The first 100 images to test on, and their labels."""
    return digits.x_test[:100].copy(), digits.y_test[:100].copy()


@pytest.fixture
def few(examples):
    """The first 20."""
    return tuple(part[:20] for part in examples)


@pytest.fixture
def report(art_classifier):
    """Call it for the report of a network in ART's own classifier with torch's cross-entropy."""

    def make(network, x, y, classifier_options=None, **options):
        classifier = art_classifier(nn.CrossEntropyLoss(), network=network, **(classifier_options or {}))
        return gradient_masking_report(classifier, x, y, **QUICK | options)

    return make


def names(found):
    """The names of the flags."""
    return [flag.name for flag in found.flags]


class Rounding(nn.Module):
    """An input step without a derivative."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network((x * 15).round() / 15)


class Dropout(nn.Module):
    """Dropout of the input that evaluation mode does not switch off."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(nn.functional.dropout(x, 0.3, training=True))


class Noisy(nn.Module):
    """Random noise on the input."""

    def __init__(self, network, size):
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x):
        return self.network(x + self.size * torch.randn_like(x))


class NaNWhereBright(nn.Module):
    """Its logits are right everywhere, their gradients NaN where the image is bright: 0 / 0 in the derivative."""

    def __init__(self, network, limit):
        super().__init__()
        self.network, self.limit = network, limit

    def forward(self, x):
        bright = x.mean((1, 2, 3)) > self.limit
        same = x.clone()
        same[bright] = x[bright] + (x[bright] - x[bright]).abs().sqrt()
        return self.network(same)


class Unnormalised(nn.Module):
    """A network of images that a mean and a standard deviation have been taken off."""

    def __init__(self, network, mean, std):
        super().__init__()
        self.network, self.mean, self.std = network, mean, std

    def forward(self, x):
        return self.network(x * self.std + self.mean)


class Flat(nn.Module):
    """The network of flat features."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x.reshape(-1, 1, 8, 8))


class FiveOrMore(nn.Module):
    """The network of two classes: the digits up to 4, and the others."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        logits = self.network(x)
        return torch.stack([logits[:, :5].logsumexp(1), logits[:, 5:].logsumexp(1)], dim=1)


class OneHotLoss(nn.Module):
    """A cross-entropy of one's own, of one-hot labels and without a reduction."""

    def forward(self, logits, labels):
        return -(labels * logits.log_softmax(1)).sum(1).mean()


class TestHonestNetworks:
    """The controls that must not fire."""

    @pytest.mark.parametrize("eps", [0.1, 0.2])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_cross_entropy(self, report, honest_networks, examples, seed, eps):
        found = report(honest_networks[seed], *examples, eps=eps)
        assert found.flags == ()
        assert not found.flagged
        assert found.clean.mean() > 0.9
        assert found.iterative[20].mean() < found.clean.mean() - 0.2
        assert not found.unbounded.any()

    @pytest.mark.parametrize("eps", [0.1, 0.2])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_adversarial_training(self, report, hardened_networks, digits, seed, eps):
        """On all test images, for among few a difference may pass for chance."""
        found = report(hardened_networks[seed], digits.x_test, digits.y_test, eps=eps, square_iter=10, noise_draws=2)
        assert found.flags == ()
        assert found.clean.mean() > 0.8
        assert found.curve[0.5 * eps].mean() > 0.4  # robust indeed

    def test_hr(self, hr_classifier, art_classifier, examples):
        """Trained by the HR loss, attacked along it and along cross-entropy: on digits nothing is masked either."""
        for classifier in (hr_classifier(), art_classifier(nn.CrossEntropyLoss())):
            assert gradient_masking_report(classifier, *examples, **QUICK).flags == ()

    def test_normalisation_inside_the_classifier(self, report, honest_network, examples):
        options = {"preprocessing": (np.float32(0.3), np.float32(0.4))}
        network = Unnormalised(honest_network, 0.3, 0.4)
        assert report(network, *examples, classifier_options=options).flags == ()


class TestDefects:
    """Each is flagged by its name."""

    @pytest.fixture
    def plain(self, report, honest_network, examples):
        """The report of the network without defects, as far as single steps go."""
        return report(honest_network, *examples, **LEAST)

    def test_logits_times_10(self, report, honest_network, examples, plain):
        found = report(Scaled(honest_network, 10), *examples)
        np.testing.assert_array_equal(found.clean, plain.clean)
        assert found.single_step["as given"].mean() > plain.single_step["as given"].mean() + 0.05
        assert {"zero gradients", "subnormal gradients", "masked gradients"} <= set(names(found))

    def test_logits_times_50(self, report, honest_network, examples, plain):
        found = report(Scaled(honest_network, 50), *examples)
        np.testing.assert_array_equal(found.clean, plain.clean)
        assert found.single_step["as given"].mean() > plain.single_step["as given"].mean() + 0.2
        expected = {"zero gradients", "masked gradients", "a better attack breaks more", "unbounded attack fails"}
        assert expected <= set(names(found))
        # All that does not saturate finds the same: what was gained is gone.
        for name in ("the margin", "DLR", "CE of logits / T", "CE in float64"):
            assert found.single_step[name].mean() < found.single_step["as given"].mean() - 0.1

    def test_rounded_input(self, report, honest_network, examples):
        found = report(Rounding(honest_network), *examples, square_iter=100)
        assert found.gradients.zero == found.unchanged == 1.0
        assert found.unbounded.mean() == found.clean.mean()
        assert names(found) == ["zero gradients", "black box beats white box", "unbounded attack fails"]

    def test_dropout_left_on(self, report, honest_network, examples):
        found = report(Dropout(honest_network), *examples, noise_draws=20)
        assert {"random predictions", "unstable predictions"} <= set(names(found))

    @pytest.mark.parametrize("size", [0.01, 0.3])
    def test_noise_on_the_input(self, report, honest_network, examples, size):
        found = names(report(Noisy(honest_network, size), *examples, noise_draws=20))
        assert "random predictions" in found
        assert ("unstable predictions" in found) == (size == 0.3)

    def test_probabilities(self, report, honest_network, examples):
        found = report(nn.Sequential(honest_network, nn.Softmax(1)), *examples)
        assert names(found)[0] == "probabilities"
        assert not report(nn.Sequential(honest_network, nn.LogSoftmax(1)), *examples, **LEAST).probabilities

    def test_nan_gradients(self, report, honest_network, examples):
        x, y = examples
        limit = np.sort(x.mean((1, 2, 3)))[-11]
        found = report(NaNWhereBright(honest_network, limit), x, y)
        assert found.gradients == Gradients(zero=0.0, nan=0.1, subnormal=0.0)
        assert found.unchanged == 0.1
        assert {"NaN gradients", "unchanged images"} <= set(names(found))

    @pytest.mark.parametrize("clip_values", [None, (-0.75, 1.75), (-1.0, 2.0)])
    def test_normalised_outside(self, report, honest_network, examples, clip_values):
        x, y = examples
        found = report(
            Unnormalised(honest_network, 0.3, 0.4), (x - 0.3) / 0.4, y, {"clip_values": clip_values}, eps=EPS / 0.4
        )
        assert names(found) == ["units of eps"]
        assert "the images lie in [-0.75, 1.75]" in found.flags[0].evidence
        assert ("Square" in found.black_box) == (clip_values is not None)

    def test_bytes(self, report, honest_network, examples):
        """255 times the pixels are as good, but not pixels in [0, 1] of a classifier of bytes."""
        x, y = examples
        options = {"clip_values": (0.0, 255.0)}
        bytes_ = (255 * x).astype(np.uint8)
        assert report(Unnormalised(honest_network, 0, 1 / 255), bytes_, y, options, eps=25.0).flags == ()
        assert "units of eps" in names(report(honest_network, x, y, options, **LEAST))


class TestWorksFor:
    """Classifiers, labels and options of all kinds."""

    @pytest.mark.parametrize(
        "defence",
        [
            SpatialSmoothing(window_size=3, channels_first=True),
            JpegCompression(clip_values=(0, 1), channels_first=True),
        ],
        ids=lambda defence: type(defence).__name__,
    )
    def test_defences_in_numpy(self, art_classifier, hr_classifier, few, defence):
        for make in (art_classifier, hr_classifier):
            classifier = make(nn.CrossEntropyLoss(), preprocessing_defences=defence)
            found = gradient_masking_report(classifier, *few, **QUICK | {"max_iter": 5, "square_iter": 10})
            right = classifier.predict(few[0]).argmax(1) == few[1]
            np.testing.assert_array_equal(found.clean, right)
            assert found.iterative[5].mean() < found.clean.mean()

    def test_feature_squeezing(self, hr_classifier, few):
        """In ART's own classifier it gives float64 to a network of float32, and nothing works."""
        classifier = hr_classifier(preprocessing_defences=FeatureSqueezing(clip_values=(0, 1), bit_depth=3))
        assert gradient_masking_report(classifier, *few, **QUICK).clean.mean() > 0.8

    @pytest.mark.parametrize("make", ["art_classifier", "hr_classifier"])
    def test_a_loss_without_a_reduction(self, request, few, make):
        loss = OneHotLoss() if make == "art_classifier" else None
        classifier = request.getfixturevalue(make)(loss)
        assert gradient_masking_report(classifier, *few, **QUICK).clean.mean() > 0.8

    def test_norm_2(self, art_classifier, examples):
        found = gradient_masking_report(
            art_classifier(nn.CrossEntropyLoss()), *examples, **QUICK | {"eps": 1.0}, norm=2
        )
        assert found.flags == ()
        assert found.black_box == {}
        assert list(found.noise) == pytest.approx([1 / 8, 2 / 8])
        assert found.iterative[20].mean() < found.clean.mean() - 0.2

    def test_two_classes(self, report, network, few):
        x, y = few
        found = report(FiveOrMore(network), x, (y >= 5).astype(int), {"nb_classes": 2})
        assert found.classes == 2
        assert list(found.single_step) == ["as given", "exact CE", "the margin", "CE of logits / T", "CE in float64"]

    def test_flat_features(self, report, network, few):
        x, y = few
        found, images = report(Flat(network), x.reshape(20, 64), y, {"input_shape": (64,)}), report(network, x, y)
        assert found.black_box == {}
        assert str(found) == "\n".join(line for line in str(images).split("\n") if "Square" not in line)

    def test_forms_of_images_and_labels(self, art_classifier, few):
        x, y = few
        classifier, one_hot = art_classifier(nn.CrossEntropyLoss()), np.eye(10)[y]
        forms = [(x, y), (x.astype(np.float64), y), (x, one_hot), (x, y[:, None]), (x, list(y))]
        assert len({str(gradient_masking_report(classifier, *form, **LEAST | {"max_iter": 3})) for form in forms}) == 1

    def test_one_example_and_one_step(self, art_classifier, few):
        x, y = few
        found = gradient_masking_report(art_classifier(nn.CrossEntropyLoss()), x[:1], y[:1], **LEAST)
        assert list(found.iterative) == [1, 2]
        assert found.unstable == 0

    def test_transfer(self, art_classifier, network, honest_network, examples):
        """The images of the honest network break one whose own gradients are of no use."""
        loss = nn.CrossEntropyLoss()
        masked = art_classifier(loss, network=Rounding(honest_network))
        others = {"another": art_classifier(loss), "its own": art_classifier(loss, network=honest_network)}
        found = gradient_masking_report(masked, *examples, **QUICK | {"square_iter": 0}, transfer_from=others)
        assert list(found.black_box) == ["transfer from another", "transfer from its own"]
        assert found.black_box["transfer from its own"].mean() < found.clean.mean() - 0.2
        evidence = [flag.evidence for flag in found.flags if flag.name == "black box beats white box"]
        assert any("transfer from its own" in text for text in evidence)


@pytest.mark.parametrize(("norm", "eps"), [(np.inf, 20.0), (2, 130.0)])
def test_every_part_of_a_report_is_its_probe(art_classifier, network, examples, norm, eps):
    """Of bytes, so that the range of the pixels matters."""
    x, y = 255 * examples[0], examples[1]
    spy = Unnormalised(network, 0, 1 / 255)
    classifier = art_classifier(nn.CrossEntropyLoss(), network=spy, clip_values=(0.0, 255.0))
    options = {"max_iter": 2, "square_iter": 0, "noise_draws": 30, "norm": norm}
    found, target = (
        gradient_masking_report(classifier, x, y, eps=eps, **options),
        Target(classifier, x, y, eps, norm, 128),
    )
    short, long = target.pgd(2), target.pgd(4)
    assert (found.silent, found.moving) == (short.silent.mean(), long.moving.mean())
    assert short.moving.mean() != long.moving.mean()
    assert list(found.iterative) == [2, 4]
    np.testing.assert_array_equal([*found.iterative.values()], [short.standing, long.standing])
    assert list(found.curve) == [eps / 2, 2 * eps, 4 * eps]
    np.testing.assert_array_equal([*found.curve.values()], [target.pgd(2, size).standing for size in found.curve])
    np.testing.assert_array_equal(found.unbounded, target.pgd(2, target.unbounded_eps).standing)
    np.testing.assert_array_equal(found.single_step["as given"], target.standing(target.fgsm()))
    assert list(found.noise) == [target.noise_size, 2 * target.noise_size]
    random = np.random.default_rng(0)
    for size, standing in found.noise.items():
        np.testing.assert_array_equal(standing, target.noise(size, random))
    assert found.unstable == target.unstable(4.0, 30, random)
    assert found.unchanged == 0
    assert (found.pixels, found.clip_values, found.classes) == ((0.0, 255.0), (0.0, 255.0), 10)


def test_unstable_is_in_units_of_the_pixels(art_classifier):
    """One pixel, 255 bright at most, and two classes with their border at 127.5: noise is of 4."""
    border = nn.Linear(1, 2)
    with torch.no_grad():
        border.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        border.bias.copy_(torch.tensor([-127.5, 127.5]))
    options = {"input_shape": (1,), "nb_classes": 2, "clip_values": (0.0, 255.0)}
    classifier = art_classifier(nn.CrossEntropyLoss(), network=border, **options)
    x = np.array([[0.0], [120.0], [125.0], [130.0], [255.0]])
    found = gradient_masking_report(classifier, x, x[:, 0] < 127, eps=8.0, max_iter=2, noise_draws=40)
    assert found.unstable == 0.4


def test_random_is_a_share_of_the_largest_logit(art_classifier, network, examples):
    found = [
        gradient_masking_report(
            art_classifier(nn.CrossEntropyLoss(), network=Scaled(Noisy(network, 1e-3), factor)), *examples, **LEAST
        ).random
        for factor in (1.0, 4.0)
    ]
    assert found[0] == found[1] > 1e-4


class TestChangesNothing:
    def test_of_classifiers_arrays_and_generators(self, art_classifier, hr_classifier, few):
        x, y = few
        x.flags.writeable = y.flags.writeable = False
        classifiers = [art_classifier(nn.CrossEntropyLoss()), hr_classifier(), art_classifier(nn.CrossEntropyLoss())]
        for classifier in classifiers:
            classifier.model.train()
            classifier.model.conv1.eval()
            classifier.model.fc1.weight.grad = torch.ones_like(classifier.model.fc1.weight)
        before = [_state(classifier) for classifier in classifiers]
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        for classifier in classifiers[:2]:
            gradient_masking_report(classifier, x, y, **QUICK, transfer_from={"the third": classifiers[2]})
            with pytest.raises(ValueError, match="expected labels"):
                gradient_masking_report(classifier, x, y, **QUICK, transfer_from={"none": _of_nine(classifier)})
        assert [_state(classifier) for classifier in classifiers] == before
        assert torch.equal(torch.get_rng_state(), torch_state)
        np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
        np.testing.assert_array_equal(classifiers[0].model.fc1.weight.grad, 1)

    def test_a_seed_gives_the_same_again(self, art_classifier, network, few):
        """Also where the network draws from torch's generator."""
        classifier = art_classifier(nn.CrossEntropyLoss(), network=Dropout(network))
        once, again, other = (str(gradient_masking_report(classifier, *few, **QUICK, seed=seed)) for seed in (1, 1, 2))
        assert once == again
        assert once != other


def _of_nine(classifier):
    """The same network as a classifier of 9 classes, which it is not."""
    options = {"input_shape": (1, 8, 8), "nb_classes": 9, "optimizer": None, "device_type": "cpu"}
    return PyTorchClassifier(classifier.model, nn.CrossEntropyLoss(), **options)


def _state(classifier):
    """All of a classifier that a report could change, to compare."""
    modes = [module.training for module in classifier.model.modules()]
    gradients = [
        id(parameter.grad) if parameter.grad is not None else None for parameter in classifier.model.parameters()
    ]
    weights = [parameter.detach().numpy().tobytes() for parameter in classifier.model.parameters()]
    return modes, gradients, weights, dict(vars(classifier)), len(classifier.optimizer.state)


@pytest.mark.parametrize("max_iter", [8, 16])
@pytest.mark.parametrize(("square_iter", "noise_draws"), [(0, 0), (40, 30)])
def test_cost_is_as_documented(art_classifier, network, few, max_iter, square_iter, noise_draws):
    spies = [Counting(network), Counting(network)]
    classifier, other = (art_classifier(nn.CrossEntropyLoss(), network=spy) for spy in spies)
    options = {"max_iter": max_iter, "square_iter": square_iter, "noise_draws": noise_draws}
    found = gradient_masking_report(classifier, *few, eps=0.01, **options, transfer_from={"the other": other})
    assert (found.strong == found.clean).all()  # Auto-PGD breaks none: it takes all steps with whatever is right
    # Auto-PGD does not attack what is wrong, and asks one image for its form; one view is tried on one example.
    wrong = (~found.clean).mean()
    plain = 8 * max_iter + 26 + noise_draws - wrong * (max_iter + 1) + 2 / 20
    forwards, backwards = spies[0].forwards / 20, spies[0].backwards / 20
    assert backwards == pytest.approx(8 * max_iter + 6 - wrong * max_iter + 1 / 20)
    if square_iter:
        assert plain + 3 < forwards <= plain + square_iter + 3
    else:
        assert forwards == pytest.approx(plain)
    assert (spies[1].forwards / 20, spies[1].backwards / 20) == (max_iter, max_iter)


# --- flags, by hand ---------------------------------------------------------------------------------------------------


def standing(left, n=1000):
    """That many of n examples left right, the first of them."""
    return np.arange(n) < left


def made_up(**changes):
    """Measurements of 1000 examples of an honest classifier, but for the changes."""
    attacked = standing(300)
    return GradientMaskingReport(
        **{
            "eps": 0.1,
            "norm": np.inf,
            "classes": 10,
            "clean": standing(980),
            "gradients": Gradients(0.0, 0.0, 0.0),
            "margins": np.linspace(-1, 10, 1000),
            "unchanged": 0.0,
            "single_step": {"as given": standing(500), "the margin": standing(500), "exact CE": standing(500)},
            "iterative": {40: attacked, 80: attacked},
            "strong": attacked,
            "black_box": {"Square": standing(600), "transfer from another": standing(700)},
            "curve": {0.05: standing(800), 0.2: standing(0)},
            "unbounded": standing(0),
            "noise": {0.1: standing(970), 0.2: standing(900)},
            "unstable": 0.0,
            "silent": 0.0,
            "moving": 0.0,
            "random": 0.0,
            "probabilities": False,
            "pixels": (0.0, 1.0),
            "clip_values": (0.0, 1.0),
        }
        | changes
    )


def test_an_honest_classifier_raises_no_flag():
    assert made_up().flags == ()
    assert not made_up().flagged


def test_what_stands_is_right_without_attack_and_under_every_attack_within_eps():
    assert made_up().standing.sum() == 300
    for name in ("clean", "strong"):
        assert made_up(**{name: standing(7)}).standing.sum() == 7, name
    for name in ("single_step", "iterative", "black_box"):
        changed = made_up(**{name: {**getattr(made_up(), name), 0: standing(7)}})
        assert changed.standing.sum() == 7, name
    # Beyond eps, and without an attack, nothing counts.
    beyond = made_up(curve={0.2: standing(0)}, unbounded=standing(0), noise={0.1: standing(0)})
    assert (beyond.standing == made_up().standing).all()


def _steps(**others):
    return {"as given": standing(500)} | {name.replace("_", " "): standing(left) for name, left in others.items()}


# Each with what raises the flag, and it alone, and what does not quite. Of 1000 examples, those that one of two attacks
# breaks beyond the other's are enough from 19 on for a limit of 1%, and from 59 on for one of 5%: see TestWeaker.
BOTH_SIDES = {
    "probabilities": ({"probabilities": True}, {"probabilities": False}),
    "random predictions": ({"random": 1.1e-4}, {"random": 1e-4}),
    "zero gradients": ({"gradients": Gradients(0.0011, 0, 0)}, {"gradients": Gradients(0.001, 0, 0)}),
    "NaN gradients": ({"gradients": Gradients(0, 0.0011, 0)}, {"gradients": Gradients(0, 0.001, 0)}),
    "subnormal gradients": ({"gradients": Gradients(0, 0, 0.0011)}, {"gradients": Gradients(0, 0, 0.001)}),
    "unchanged images": ({"unchanged": 0.0011}, {"unchanged": 0.001}),
    "iterations do not help": (
        {"single_step": {"as given": standing(281)}, "iterative": {40: standing(300), 80: standing(290)}},
        {"single_step": {"as given": standing(282)}},
    ),
    "too few iterations": (
        {"iterative": {40: standing(300), 80: standing(281)}},
        {"iterative": {40: standing(300), 80: standing(282)}},
    ),
    "a better attack breaks more": ({"strong": standing(241)}, {"strong": standing(242)}),
    "black box beats white box": ({"black_box": {"Square": standing(281)}}, {"black_box": {"Square": standing(282)}}),
    "noise beats gradients": (
        {"noise": {0.2: standing(0), 0.1: standing(481)}},
        {"noise": {0.2: standing(0), 0.1: standing(482)}},
    ),
    "unbounded attack fails": ({"unbounded": standing(124)}, {"unbounded": standing(123)}),
    "unstable predictions": ({"unstable": 0.124}, {"unstable": 0.123}),
    "silent success": ({"silent": 0.019}, {"silent": 0.018}),
    "incomplete optimisation": ({"moving": 0.124}, {"moving": 0.123}),
}


@pytest.mark.parametrize("name", BOTH_SIDES)
def test_both_sides_of_every_flag(name):
    above, below = BOTH_SIDES[name]
    assert names(made_up(**above)) == [name]
    assert names(made_up(**below)) == []


@pytest.mark.parametrize(
    ("steps", "flagged"),
    [
        ({"exact_CE": 450}, True),
        ({"exact_CE": 490}, False),
        ({"exact_CE": 550}, False),
        ({"CE_in_float64": 450}, True),
        ({"CE_of_logits_/_T": 450}, True),
        ({"the_margin": 450}, False),
        ({"DLR": 450}, False),
        ({"the_margin": 400}, True),
        ({"DLR": 400}, True),
        ({"DLR": 550, "exact_CE": 450}, True),
    ],
)
def test_masked_gradients(steps, flagged):
    """Along the same aim in better numbers 1% is too much; another aim may be better by 5%."""
    found = made_up(single_step=_steps(**steps))
    assert names(found) == ["masked gradients"] * flagged
    if flagged:
        (least,) = (f"{name.replace('_', ' ')} 0.{left}" for name, left in steps.items() if left < 500)
        assert found.flags[0].evidence.endswith(f"less: {least[:-1]}0" if least.endswith("00") else f"less: {least}")


def test_zero_gradients_explain_unchanged_images():
    assert names(made_up(unchanged=0.5, gradients=Gradients(0.5, 0, 0))) == ["zero gradients"]
    assert names(made_up(unchanged=0.5, gradients=Gradients(0, 0.5, 0))) == ["NaN gradients", "unchanged images"]


@pytest.mark.parametrize(
    ("pixels", "clip_values", "flagged"),
    [
        ((0.0, 1.0), (0.0, 1.0), False),
        ((0.1, 0.9), (0.0, 1.0), False),
        ((0.0, 255.0), (0.0, 255.0), False),
        ((0.0, 1.01), (0.0, 1.0), True),
        ((-0.01, 1.0), (0.0, 1.0), True),
        ((0.0, 255.0), (0.0, 1.0), True),
        ((0.0, 1.0), (0.0, 255.0), True),
        ((0.0, 256.0), (0.0, 255.0), True),
        ((-1.0, 255.0), (0.0, 255.0), True),
        ((-1.0, 1.0), (-1.0, 1.0), True),
        ((0.0, 1.0), (-1.0, 1.0), True),
        ((0.0, 1.0), None, True),
    ],
)
def test_units_of_eps(pixels, clip_values, flagged):
    assert names(made_up(pixels=pixels, clip_values=clip_values)) == ["units of eps"] * flagged


def test_every_black_box_is_judged():
    found = made_up(black_box={"a": standing(200), "b": standing(600), "c": standing(100)})
    assert [flag.evidence for flag in found.flags] == ["PGD leaves 0.300, a 0.200", "PGD leaves 0.300, c 0.100"]


def test_chance_depends_on_the_classes():
    assert names(made_up(unbounded=standing(537), classes=2)) == []
    assert names(made_up(unbounded=standing(538), classes=2)) == ["unbounded attack fails"]


def test_shares_of_few_examples_are_not_flagged_by_chance():
    """Three of fifty are more than 1%, but no evidence that there are more than 1% of all."""
    few = {"clean": standing(49, 50), "unbounded": standing(0, 50)}
    assert names(made_up(silent=0.06, unstable=0.2, moving=0.2, **few)) == []
    flagged = ["unstable predictions", "silent success", "incomplete optimisation"]
    assert names(made_up(silent=0.08, unstable=0.22, moving=0.22, **few)) == flagged


class TestWeaker:
    def test_thresholds_by_hand(self):
        """Of 1000 examples, those that one attack alone breaks: k for the second, and for the first none or 10."""

        def second_breaks(k, of_the_first=0, by=0.01):
            first = np.arange(1000) >= of_the_first  # what the first leaves
            second = np.arange(1000) < 1000 - k
            return weaker(first, second, by)

        # (k + 10) / 2k is the expected share of k for a difference of 1%. All k of k are then by chance
        # (28 / 36) ** 18 = 0.0108 and (29 / 38) ** 19 = 0.0059.
        assert next(k for k in range(40) if second_breaks(k)) == 19
        # In one that breaks 10 the other leaves, a difference of 10 is by chance in more than half of all cases.
        assert not second_breaks(20, of_the_first=10)
        assert second_breaks(60, of_the_first=10)
        assert not second_breaks(60, of_the_first=10, by=0.05)
        # ((58 + 50) / 116) ** 58 = 0.016 and ((59 + 50) / 118) ** 59 = 0.0093.
        assert next(k for k in range(100) if second_breaks(k, by=0.05)) == 59

    def test_is_of_one_direction(self):
        random = np.random.default_rng(0)
        for _ in range(200):
            first, second = random.random((2, 300)) < random.random((2, 1))
            assert not (weaker(first, second) and weaker(second, first))
            assert not weaker(first, first)

    def test_not_of_few_examples(self):
        """Six that only the second breaks are by chance once in 64 times; of a thousand seven are less than 1%."""
        assert not weaker(standing(6, 6), standing(0, 6))
        assert weaker(standing(7, 7), standing(0, 7))
        assert not weaker(standing(1000), standing(993))

    @pytest.mark.parametrize("n", [20, 200, 2000])
    def test_equal_attacks_are_seldom_called_unequal(self, n):
        """A level of 1%: of 2000 pairs, within 4 standard errors, no more than 38."""
        random = np.random.default_rng(n)
        pairs = random.random((2000, 2, n)) < 0.5
        assert sum(weaker(first, second) for first, second in pairs) <= 38


def test_the_report_as_a_whole():
    four = np.array([True, True, True, False])
    found = GradientMaskingReport(
        eps=0.25,
        norm=np.inf,
        classes=2,
        clean=four,
        gradients=Gradients(0.0, 0.001, 0.0006),
        margins=np.array([3.0, 2.0, 1.0, -1.0]),
        unchanged=0.0,
        single_step={"as given": four & ~four[::-1], "DLR": four},
        iterative={3: ~four, 6: ~four},
        strong=four & False,
        black_box={"Square": four},
        curve={0.125: four, 0.5: ~four},
        unbounded=~four,
        noise={0.25: four, 0.5: four},
        unstable=0.25,
        silent=0.0,
        moving=0.125,
        random=0.5,
        probabilities=True,
        pixels=(0.0, 1.0),
        clip_values=(0.0, 1.0),
    )
    assert str(found) == REPORT.strip()
    assert found.flagged
    frame = found.to_frame()
    assert list(frame.columns) == ["part", "what", "value"]
    assert [tuple(row) for row in frame.itertuples(index=False)] == found.rows()
    assert [value for _, _, value in replace(found, clean=~four).rows()] == [0.25, *(v for _, _, v in found.rows()[1:])]


REPORT = """
Gradient masking, 4 examples, eps 0.25, norm inf: 2 flags
no attack                               0.750
FGSM       as given                     0.250
FGSM       DLR                          0.750
PGD        3 steps                      0.250
PGD        6 steps                      0.250
PGD        eps 0.125                    0.750
PGD        eps 0.5                      0.250
PGD        unbounded                    0.250
Auto-PGD   the margin                   0.000
black box  Square                       0.750
noise      size 0.25                    0.750
noise      size 0.5                     0.750
gradients  exactly 0                    0.000
gradients  NaN or inf                   0.001
gradients  subnormal                    0.001
FGSM       images unchanged             0.000
PGD        silent success               0.000
PGD        still moving at its end      0.125
noise      unstable at 4/255            0.250
margin     percentile 1                -0.940
margin     percentile 50                1.500
margin     percentile 99                2.970
! probabilities: each row of the output is a distribution. Take the softmax out of the network: a loss of logits saturates on probabilities.
! random predictions: two equal calls differ in a logit by 50.0% of the largest. Switch randomness such as dropout off, or attack its expectation (art.preprocessing.expectation_over_transformation).
"""  # noqa: E501


def _error(classifier, x, y, **options):
    with pytest.raises((ValueError, TypeError)) as caught:
        gradient_masking_report(classifier, x, y, **{"eps": 0.1} | options)
    return str(caught.value)


def test_errors(art_classifier, few):
    x, y = few
    classifier = art_classifier(nn.CrossEntropyLoss())
    counts = "expected images, and a label for each, but got"
    assert _error(classifier, x[:0], y[:0]) == f"{counts} 0 and 0 labels"
    assert _error(classifier, x, y[:5]) == f"{counts} 20 and 5 labels"
    assert _error(classifier, x, y + 9).startswith(
        "expected labels as class indices from 0 to 9 or rows of 10, but got"
    )
    for eps in (0.0, -1.0, np.inf, np.nan):
        assert _error(classifier, x, y, eps=eps) == f"expected eps to be finite and above 0, but got {eps}"
    for norm in (1, 0, 3):
        assert _error(classifier, x, y, norm=norm) == f"expected norm to be numpy.inf or 2, but got {norm}"
    for name, least in {"max_iter": 1, "square_iter": 0, "noise_draws": 0, "batch_size": 1}.items():
        expected = f"expected {name} to be at least {least}, but got {least - 1}"
        assert _error(classifier, x, y, **{name: least - 1}) == expected
    shapes = "one number for each class, but got"
    assert _error(_of_nine(classifier), x, y % 9) == f"expected predictions of shape (20, 9), {shapes} (20, 10)"
