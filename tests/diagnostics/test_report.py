"""Tests of gradient_masking_report: networks with and without masking on real digits, errors, side effects."""

import copy
import functools

import numpy as np
import pytest
import torch
from art.defences.preprocessor import JpegCompression, SpatialSmoothing
from testing.networks import Counting, nan_where_bright, unnormalised
from torch import nn

from art_hrloss import GradientMaskingReport, HRClassifier, gradient_masking_report
from art_hrloss.classifier import as_hr_classifier
from art_hrloss.diagnostics._measurements import Gradients, Target
from benchmarks.autoattack.masked import Around, Decoy, WinnersTakeAll, rounding, scaled

EPS = 0.1
QUICK = {"eps": EPS, "max_iter": 10, "square_iter": 40, "noise_draws": 10}
# The cheapest report, for properties that do not depend on the strength of the attacks.
LEAST = {"eps": EPS, "max_iter": 1, "square_iter": 0, "noise_draws": 0}


def _trained(network, seed, digits, eps=0.0):
    """Return the network after ten epochs of cross-entropy or, with an eps, of adversarial training with PGD."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        optimizer = torch.optim.Adam(network.train().parameters(), lr=5e-3)
        images, labels = torch.tensor(digits.x_train), torch.tensor(digits.y_train)
        for _ in range(10):
            for batch in torch.randperm(len(images)).split(64):
                x, y = images[batch], labels[batch]
                points = x + eps * (2 * torch.rand_like(x) - 1)
                for _ in range(3 if eps else 0):
                    points.requires_grad_()
                    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(network(points), y), points)
                    points = (points.detach() + eps / 3 * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(points), y).backward()
                optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def trained(trained_network, digits):
    """A function that returns a network by the name of its training, which runs once."""
    build = {
        "CE": lambda: _trained(copy.deepcopy(trained_network), 0, digits),
        "HR": lambda: trained_network,
        "adversarial": lambda: _trained(copy.deepcopy(trained_network), 0, digits, eps=EPS),
        "k-WTA": lambda: _trained(WinnersTakeAll(), 0, digits),
    }
    return functools.cache(lambda name: build[name]())


@pytest.fixture
def unmasked(trained):
    """The network trained with cross-entropy."""
    return trained("CE")


@pytest.fixture
def examples(digits):
    """The first 100 test images and their labels."""
    return digits.x_test[:100].copy(), digits.y_test[:100].copy()


@pytest.fixture
def few(examples):
    """The first 20 test images and their labels."""
    return tuple(part[:20] for part in examples)


@pytest.fixture
def report(hr_classifier):
    """A function that returns the report of a network, attacked along torch's cross-entropy."""

    def make(network, x, y, classifier_options=None, **options):
        classifier = hr_classifier(nn.CrossEntropyLoss(), network=network, **(classifier_options or {}))
        return gradient_masking_report(classifier, x, y, **QUICK | options)

    return make


def names(report):
    return {flag.name for flag in report.flags}


def five_or_more(logits):
    """Logits of two classes: the digits up to 4, and the digits above."""
    return torch.stack([logits[:, :5].logsumexp(1), logits[:, 5:].logsumexp(1)], dim=1)


# Honest networks


@pytest.mark.parametrize("training", ["CE", "HR", "adversarial"])
def test_networks_without_masking_raise_no_flag(report, trained, digits, training):
    """Differences of a few percent are detectable with 300 images."""
    result = report(trained(training), digits.x_test[:300], digits.y_test[:300], square_iter=20)
    assert result.flags == ()
    assert not result.flagged
    assert result.clean.mean() > 0.9
    assert result.iterative[20].mean() < result.clean.mean() - 0.15
    assert not result.unbounded.any()
    assert result.unstable.mean() < 0.02
    assert (result.robust.mean() > 0.5) == (training == "adversarial")


def test_a_pytorch_classifier_has_the_report_of_an_hr_classifier(hr_classifier, art_classifier, few):
    reports = [
        gradient_masking_report(make(nn.CrossEntropyLoss()), *few, **QUICK) for make in (hr_classifier, art_classifier)
    ]
    assert str(reports[0]) == str(reports[1])
    np.testing.assert_array_equal(reports[0].robust, reports[1].robust)


def test_normalisation_by_the_classifier_raises_no_flag(report, unmasked, examples):
    options = {"preprocessing": (np.float32(0.3), np.float32(0.4))}
    assert report(unnormalised(unmasked, 0.3, 0.4), *examples, options).flags == ()


# Masked networks


@pytest.mark.parametrize(("factor", "gain"), [(10, 0.05), (50, 0.2)])
def test_scaled_logits_are_flagged(report, unmasked, examples, factor, gain):
    result, plain = report(scaled(unmasked, factor), *examples), report(unmasked, *examples, **LEAST)
    np.testing.assert_array_equal(result.clean, plain.clean)
    assert result.single_step["as given"].mean() > plain.single_step["as given"].mean() + gain
    assert {"zero gradients", "masked gradients"} <= names(result)
    # Along gradients that do not saturate, the accuracy is as low as without masking.
    for name in ("margin", "DLR", "CE of logits / T", "CE in float64"):
        assert result.single_step[name].mean() < result.single_step["as given"].mean() - gain / 2


def test_rounded_input_is_flagged(report, unmasked, examples):
    result = report(rounding(unmasked), *examples, square_iter=100)
    assert result.gradients.zero == result.unchanged == 1.0
    assert result.unbounded.mean() == result.clean.mean()
    expected = {"zero gradients", "black box beats white box", "unbounded attack fails", "unstable predictions"}
    assert names(result) == expected


def test_winners_take_all_is_flagged_as_unstable(report, trained, examples):
    result = report(trained("k-WTA"), *examples)
    assert result.clean.mean() > 0.85
    assert "unstable predictions" in names(result)


def test_a_decoy_gradient_is_flagged_as_unstable(report, unmasked, examples):
    assert "unstable predictions" in names(report(Decoy(unmasked, WinnersTakeAll()), *examples))


def test_nan_gradients_are_flagged(report, unmasked, examples):
    x, y = examples
    limit = np.sort(x.mean((1, 2, 3)))[-11]
    result = report(nan_where_bright(unmasked, limit), x, y)
    assert result.gradients == Gradients(zero=0.0, nan=0.1, subnormal=0.0)
    assert result.unchanged == 0.1
    assert {"NaN gradients", "unchanged images"} <= names(result)


@pytest.mark.parametrize("clip_values", [None, (-0.75, 1.75), (-1.0, 2.0)])
def test_images_normalised_outside_the_classifier_are_flagged(report, unmasked, examples, clip_values):
    x, y = examples
    options = {"clip_values": clip_values}
    result = report(unnormalised(unmasked, 0.3, 0.4), (x - 0.3) / 0.4, y, options, eps=EPS / 0.4)
    assert names(result) == {"units of eps"}
    assert "the images lie in [-0.75, 1.75]" in result.flags[0].evidence
    assert ("Square" in result.black_box) == (clip_values is not None)


def test_bytes(report, unmasked, examples):
    """Pixels up to 255 raise no flag for a classifier of bytes, but pixels up to 1 do."""
    x, y = examples
    options = {"clip_values": (0.0, 255.0)}
    bytes_ = (255 * x).astype(np.uint8)
    assert report(unnormalised(unmasked, 0, 1 / 255), bytes_, y, options, eps=25.0).flags == ()
    assert "units of eps" in names(report(unmasked, x, y, options, **LEAST))


# Every kind of classifier, label and option


@pytest.mark.parametrize(
    ("make", "defence"),
    [
        ("hr_classifier", SpatialSmoothing(window_size=3, channels_first=True)),
        ("art_classifier", JpegCompression(clip_values=(0, 1), channels_first=True)),
    ],
    ids=["SpatialSmoothing", "JpegCompression"],
)
def test_numpy_preprocessing_defences(request, few, make, defence):
    classifier = request.getfixturevalue(make)(nn.CrossEntropyLoss(), preprocessing_defences=defence)
    result = gradient_masking_report(classifier, *few, eps=EPS, max_iter=5, square_iter=10, noise_draws=2)
    np.testing.assert_array_equal(result.clean, classifier.predict(few[0]).argmax(1) == few[1])
    assert result.iterative[5].mean() < result.clean.mean()


def test_norm_2(art_classifier, examples):
    classifier = art_classifier(nn.CrossEntropyLoss())
    result = gradient_masking_report(classifier, *examples, **QUICK | {"eps": 1.0}, norm=2)
    assert result.flags == ()
    assert result.black_box == {}
    assert result.iterative[20].mean() < result.clean.mean() - 0.2


def test_a_report_for_two_classes(report, network, few):
    x, y = few
    result = report(Around(network, after=five_or_more), x, (y >= 5).astype(int), {"nb_classes": 2})
    assert result.classes == 2
    assert list(result.single_step) == ["as given", "exact CE", "margin", "CE of logits / T", "CE in float64"]


def test_flat_features_have_the_same_report_without_square(report, network, few):
    x, y = few
    flat, images = (
        report(nn.Sequential(nn.Unflatten(1, (1, 8, 8)), network), x.reshape(20, 64), y, {"input_shape": (64,)}),
        report(network, x, y),
    )
    assert flat.black_box == {}
    assert flat.rows() == [row for row in images.rows() if row[1] != "Square"]


def test_one_example_and_one_step(hr_classifier, few):
    x, y = few
    result = gradient_masking_report(hr_classifier(nn.CrossEntropyLoss()), x[:1], y[:1], **LEAST)
    assert list(result.iterative) == [1, 2]
    assert not result.unstable.any()
    assert "no difference of accuracies" in str(result)


def test_transfer(hr_classifier, network, unmasked, examples):
    """A transfer attack from the network without masking succeeds on a copy with useless gradients."""
    masked = hr_classifier(network=rounding(unmasked))
    sources = {"another": hr_classifier(), "the same": hr_classifier(network=unmasked)}
    result = gradient_masking_report(masked, *examples, **QUICK | {"square_iter": 0}, transfer_from=sources)
    assert list(result.black_box) == ["transfer from another", "transfer from the same"]
    assert result.black_box["transfer from the same"].mean() < result.clean.mean() - 0.2
    assert any("transfer from the same" in flag.evidence for flag in result.flags)


@pytest.mark.parametrize(("norm", "eps"), [(np.inf, 20.0), (2, 130.0)])
def test_all_parts_of_a_report_equal_their_measurements(hr_classifier, network, examples, norm, eps):
    """The images are bytes, so that the range of the pixels matters."""
    x, y = 255 * examples[0], examples[1]
    classifier = hr_classifier(network=unnormalised(network, 0, 1 / 255), clip_values=(0.0, 255.0))
    options = {"max_iter": 2, "square_iter": 0, "noise_draws": 3, "norm": norm}
    result = gradient_masking_report(classifier, x, y, eps=eps, **options)
    target, diagonal = Target(as_hr_classifier(classifier), x, y, eps, norm), 1 if norm == np.inf else 8
    short, long = target.pgd(2, eps), target.pgd(4, eps)
    assert short.moving.mean() != long.moving.mean()
    random = np.random.default_rng(0)
    expected = {
        "silent": short.silent,
        "moving": long.moving,
        "unbounded": target.pgd(2, 255.0 * diagonal).robust,
        "auto_pgd": target.auto_pgd(2),
        "noise": target.noise(eps / diagonal, random),
        "unstable": target.unstable(1.0, 3, random),
    }
    for name, value in expected.items():
        if name != "auto_pgd":  # which starts at random
            np.testing.assert_array_equal(getattr(result, name), value, name)
    assert list(result.iterative) == [2, 4]
    np.testing.assert_array_equal([*result.iterative.values()], [short.robust, long.robust])
    np.testing.assert_array_equal(result.single_step["as given"], target.correct(target.fgsm()[0]))
    assert result.unchanged == 0
    assert (result.image_range, result.clip_values, result.classes) == ((0.0, 255.0), (0.0, 255.0), 10)


# Refusals


def test_options_out_of_range_raise_an_error(report, network, few):
    invalid = {"norm": (1, 3), "max_iter": (0,), "square_iter": (-1,), "noise_draws": (-1,), "batch_size": (0,)}
    for name, values in {"eps": (0.0, -1.0, np.inf, np.nan, 8.0), **invalid}.items():
        for value in values:
            with pytest.raises(ValueError, match=f"expected {name}"):
                report(network, *few, **{name: value})


# Nothing is modified


def _state(classifier):
    """Return copies of everything that a report could modify in a classifier."""
    modes = [module.training for module in classifier.model.modules()]
    gradients = [None if p.grad is None else id(p.grad) for p in classifier.model.parameters()]
    weights = [parameter.detach().numpy().tobytes() for parameter in classifier.model.parameters()]
    attributes = {**vars(classifier), "_observers": [*getattr(classifier, "_observers", [])]}
    return modes, gradients, weights, attributes, len(classifier.optimizer.state)


def test_classifiers_arrays_and_generators_are_not_modified(art_classifier, hr_classifier, few):
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
        with pytest.raises(ValueError, match="whole numbers"):
            gradient_masking_report(classifier, x, y + 9, **QUICK)
    assert [_state(classifier) for classifier in classifiers] == before
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    np.testing.assert_array_equal(classifiers[0].model.fc1.weight.grad, 1)


def test_the_report_uses_an_overridden_evaluate(network, few):
    class Vanishing(HRClassifier):
        """A classifier whose gradients along its attack loss are 0."""

        def evaluate(self, x, labels, *, loss=None, gradient=True):
            point = super().evaluate(x, labels, loss=loss, gradient=gradient)
            return point if loss is not None or not gradient else point._replace(gradient=0 * point.slope)

    options = {"input_shape": (1, 8, 8), "nb_classes": 10, "clip_values": (0, 1), "device_type": "cpu"}
    result = gradient_masking_report(Vanishing(network, nn.CrossEntropyLoss(), **options), *few, **QUICK)
    np.testing.assert_array_equal(result.single_step["as given"], result.clean)
    assert result.single_step["margin"].mean() < result.clean.mean()


@pytest.mark.parametrize(("max_iter", "square_iter", "noise_draws"), [(8, 0, 0), (16, 40, 30)])
def test_the_number_of_passes_is_as_documented(hr_classifier, network, few, max_iter, square_iter, noise_draws):
    spies = [Counting(network), Counting(network)]
    classifier, other = (hr_classifier(nn.CrossEntropyLoss(), network=spy) for spy in spies)
    options = {"max_iter": max_iter, "square_iter": square_iter, "noise_draws": noise_draws}
    result = gradient_masking_report(classifier, *few, eps=0.001, **options, transfer_from={"the other": other})
    assert result.auto_pgd.sum() == result.clean.sum()  # no success, so that Auto-PGD takes all its steps
    forwards, backwards = spies[0].forwards / 20, spies[0].backwards / 20
    assert 4 * max_iter < backwards <= 5 * max_iter + 7
    assert 4 * max_iter + noise_draws < forwards <= 5 * max_iter + 7 + square_iter + noise_draws + 25
    assert (spies[1].forwards / 20, spies[1].backwards / 20) == (max_iter, max_iter)


# The readable form


def test_text_and_frame_have_a_row_per_measurement_and_text_ends_with_flags():
    four = np.array([True, True, True, False])
    result = GradientMaskingReport(
        eps=0.25,
        norm=np.inf,
        classes=2,
        clean=four,
        gradients=Gradients(0.0, 0.001, 0.0006),
        margins=np.array([3.0, 2.0, 1.0, -1.0]),
        unchanged=0.0,
        single_step={"as given": four & ~four[::-1], "DLR": four},
        iterative={3: ~four, 6: ~four},
        auto_pgd=four & False,
        black_box={"Square": four},
        unbounded=~four,
        noise=four,
        unstable=~four,
        silent=four & False,
        moving=~four,
        image_range=(0.0, 1.0),
        clip_values=None,
    )
    attacked = "0.75 0.25 0.75 0.25 0.25 0.25 0 0.75 0.75"
    values = [float(value) for value in f"{attacked} 0 0.001 0.0006 0 0 0.25 0.25 -0.94 1.5 2.97".split()]
    lines = str(result).splitlines()
    assert [line.split()[-1] for line in lines[2:21]] == [f"{value:.3f}" for value in values]
    assert lines[21:] == [f"! {flag}" for flag in result.flags]
    frame = result.to_frame()
    assert list(frame.columns) == ["part", "what", "value"]
    measured = frame[frame.part != "detectable"]["value"]
    np.testing.assert_allclose(measured, values)
    detectable = frame[frame.part == "detectable"].set_index("what")["value"].to_dict()
    assert detectable == pytest.approx(result.detectable, nan_ok=True)
