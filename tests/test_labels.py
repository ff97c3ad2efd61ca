"""Tests of art_hrloss._labels: all forms of labels in all public functions, and the error for invalid labels."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import art_hrloss
from art_hrloss import AutoProjectedGradientDescent, FastGradientMethod, HRClassifier, HRLoss, ProjectedGradientDescent
from art_hrloss._labels import class_indices, label_rows, parse_labels

INTEGERS = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i2", ">i4", ">i8", ">u2", ">u4", ">u8"]
FLOATS = ["f2", "f4", "f8", ">f4", ">f8", "longdouble"]


def one_hot(y, dtype=np.float32):
    return np.eye(10, dtype=dtype)[y]


INDICES = {
    **{name: lambda y, name=name: y.astype(name) for name in [*INTEGERS, *FLOATS, object]},
    "negative stride": lambda y: y[::-1].copy()[::-1],
    "every other": lambda y: np.repeat(y, 2)[::2],
    "read-only": lambda y: np.frombuffer(y.tobytes(), dtype=y.dtype),
    "column": lambda y: y[:, None],
    "Fortran column": lambda y: np.asfortranarray(np.stack([y, y], 1))[:, :1],
    "list": list,
    "Python integers": lambda y: y.tolist(),
    "list of tensors": lambda y: list(torch.tensor(y)),
    "Series": lambda y: pd.Series(y, index=range(7, 7 + len(y))),
    "nullable Int64": lambda y: pd.Series(y, dtype="Int64"),
    "nullable UInt8": lambda y: pd.Series(y, dtype="UInt8"),
    "Categorical codes": lambda y: pd.Categorical.from_codes(y, categories=list("abcdefghij")).codes,
    "categorical Series": lambda y: pd.Series(pd.Categorical(y)),
    "DataFrame of a column": lambda y: pd.DataFrame({"label": y}),
    **{
        f"tensor {dtype}": lambda y, dtype=dtype: torch.tensor(y).to(dtype)
        for dtype in (torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int32, torch.int64, torch.bfloat16)
    },
    "tensor in inference mode": lambda y: torch.inference_mode()(torch.tensor)(y),
    "tensor that requires gradients": lambda y: torch.tensor(y, dtype=torch.float32, requires_grad=True),
}
ROWS = {
    **{f"one-hot {name}": lambda y, name=name: one_hot(y, name) for name in (*INTEGERS, *FLOATS, bool, object)},
    "one-hot list": lambda y: one_hot(y).tolist(),
    "one-hot DataFrame": lambda y: pd.DataFrame(one_hot(y, bool)),
    "one-hot with negative strides": lambda y: one_hot(y)[::-1, ::-1].copy()[::-1, ::-1],
    **{
        f"one-hot tensor {dtype}": lambda y, dtype=dtype: torch.tensor(one_hot(y)).to(dtype)
        for dtype in (torch.bool, torch.uint16, torch.int64, torch.float16, torch.float64)
    },
    "one-hot sparse tensor": lambda y: torch.tensor(one_hot(y)).to_sparse(),
    "one-hot tensor that requires gradients": lambda y: torch.tensor(one_hot(y), requires_grad=True),
}
# For 6 images of 10 classes.
WRONG = {
    "-1": np.array([0, 1, 2, 3, 4, -1]),
    "ignore_index": np.full(6, -100),
    "M": np.array([0, 1, 2, 3, 4, 10]),
    "one half": [0, 1, 2, 3, 4, 0.5],
    "NaN": np.array([0, 1, 2, 3, 4, np.nan]),
    "missing": pd.Series([0, 1, 2, 3, 4, None], dtype="Int64"),
    "huge": np.array([0, 1, 2, 3, 4, 2**64 - 1], dtype=np.uint64),
    "strings": list("012345"),
    "categories": pd.Categorical(list("abcdef")),
    "complex": np.zeros(6, dtype=complex),
    "None": None,
    "one number": np.array(3),
    "one label": np.array([3]),
    "too few": np.zeros(5, dtype=int),
    "too many": np.zeros((7, 10)),
    "nine columns": np.zeros((6, 9)),
    "three dimensions": np.zeros((6, 10, 1)),
    "ragged": [[0], [1], [2], [3], [4], [5, 6]],
    "a row of 0": np.eye(6, 10) * (np.arange(6) < 5)[:, None],
    "rows with NaN": np.full((6, 10), np.nan),
    "rows below 0": 2 * np.eye(6, 10) - 0.1,
}
ATTACK = {"eps": 0.1, "eps_step": 0.05, "max_iter": 2, "verbose": False}
ENTRY_POINTS = {
    "loss_gradient": lambda c, x, y: c.loss_gradient(x, y),
    "compute_loss": lambda c, x, y: c.compute_loss(x, y),
    "attack_labels": lambda c, x, y: c.attack_labels(y, len(x)),
    "fit": lambda c, x, y: c.fit(x, y, nb_epochs=1),
    "FGSM": lambda c, x, y: FastGradientMethod(c, eps=0.1).generate(x, y),
    "PGD": lambda c, x, y: ProjectedGradientDescent(c, **ATTACK).generate(x, y),
    "Auto-PGD": lambda c, x, y: AutoProjectedGradientDescent(c, **ATTACK).generate(x, y),
    "worst_case": lambda c, x, y: art_hrloss.worst_case(c, x, y, eps=0.1, attacks={}),
    "error_bounds": art_hrloss.error_bounds,
    "report": lambda c, x, y: art_hrloss.gradient_masking_report(c, x, y, eps=0.1, max_iter=1, square_iter=0),
    "Square": lambda c, x, y: art_hrloss.SquareAttack(c, max_iter=1, verbose=False).generate(x, y),
}
# The cases where None is the predicted classes, where ART converts a list to an array before the parser, and where a
# row of 0 is an example without weight.
NOT_WRONG = {
    ("FGSM", "None"),
    ("PGD", "None"),
    ("Auto-PGD", "None"),
    ("Square", "None"),
    ("fit", "ragged"),
    ("error_bounds", "a row of 0"),
}


@pytest.fixture(scope="module")
def classifier(trained_network):
    network = copy.deepcopy(trained_network)
    return HRClassifier(network, HRLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")


@pytest.mark.parametrize("form", INDICES.values(), ids=map(str, INDICES))
def test_indices_in_every_form_become_int64_and_one_hot(form):
    y = np.array([3, 0, 9, 9, 1])
    assert class_indices(form(y), n=5, classes=10).tolist() == y.tolist()
    parsed, rows = parse_labels(form(y), n=5, classes=10), label_rows(form(y), n=5, classes=10)
    assert (parsed.dtype, parsed.shape, parsed.requires_grad) == (torch.int64, (5,), False)
    np.testing.assert_array_equal(rows, one_hot(y))


@pytest.mark.parametrize("form", ROWS.values(), ids=ROWS)
def test_one_hot_labels_in_every_form_become_indices(form):
    y = np.array([3, 0, 9, 9, 1])
    rows = label_rows(form(y), n=5, classes=10)
    assert rows.is_floating_point()
    assert not rows.requires_grad
    np.testing.assert_array_equal(rows, one_hot(y))
    assert class_indices(form(y), n=5, classes=10).tolist() == y.tolist()


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_invalid_labels_raise_the_same_error_in_all_functions(hr_classifier, network, digits, entry_point):
    network.fc2.weight.register_hook(lambda gradient: pytest.fail("the network has been trained"))
    classifier = hr_classifier(network=network)
    for wrong in (wrong for wrong in WRONG if (entry_point, wrong) not in NOT_WRONG):
        with pytest.raises(ValueError, match=r"expected class indices, whole numbers from 0 to 9, .*, but got"):
            pytest.fail(f"{wrong}: {ENTRY_POINTS[entry_point](classifier, digits.x_test[:6], WRONG[wrong])}")


@pytest.mark.parametrize("rows", [np.full((6, 10), 0.1), np.eye(6, 10) + np.eye(6, 10, 1)], ids=["uniform", "two-hot"])
def test_ties_raise_an_error_if_a_class_is_needed(hr_classifier, network, digits, rows):
    log_softmax = hr_classifier(nn.NLLLoss(), network=nn.Sequential(network, nn.LogSoftmax(1)))
    keep_first = ProjectedGradientDescent(hr_classifier(), keep_first=True, **ATTACK)
    for function in (
        lambda x, y: art_hrloss.worst_case(hr_classifier(), x, y, eps=0.1, attacks={}),
        lambda x, y: log_softmax.fit(x, y, nb_epochs=1),
        log_softmax.loss_gradient,
        log_softmax.compute_loss,
        keep_first.generate,
    ):
        with pytest.raises(ValueError, match=r"whole numbers from 0 to 9, .* more than once"):
            function(digits.x_test[:6], rows)


def test_probabilities_are_not_reduced_to_a_class(classifier, digits):
    """Rows with two entries of 1, which ART would take for one-hot labels, and mixed labels of two images stay rows."""
    x, mixed = digits.x_test[:6], 0.7 * np.eye(6, 10) + 0.3 * np.eye(6, 10, 1)
    for rows in (np.random.default_rng(0).dirichlet(np.ones(10), 6), np.eye(6, 10) + np.eye(6, 10, 1), mixed):
        logits, target = torch.tensor(classifier.predict(x)), torch.tensor(rows, dtype=torch.float32)
        expected = HRLoss(reduction="none")(logits, target)
        assert not np.allclose(expected, HRLoss(reduction="none")(logits, target.argmax(1)))
        np.testing.assert_allclose(classifier.compute_loss(x, rows), expected, rtol=1e-5)


FITTED = {
    name: (first * np.eye(6, 10) + second * np.eye(6, 10, 1)).astype(np.float32)
    for name, first, second in (("weighted", 1, 0.5), ("two-hot", 1, 1), ("mixed", 0.7, 0.3))
}


@pytest.mark.parametrize("y", [*FITTED.values(), np.arange(6)], ids=[*FITTED, "indices"])
def test_fit_minimises_the_training_loss_with_labels_in_its_form(hr_classifier, network, digits, y):
    """The step minimises eq. (3) of the batch; attack_loss has no effect on it."""
    x, trained = digits.x_test[:6], copy.deepcopy(network)
    HRLoss()(network(torch.tensor(x)), torch.tensor(y)).backward()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    hr_classifier(network=trained, optimizer=optimizer, attack_loss=nn.CrossEntropyLoss()).fit(x, y, nb_epochs=1)
    for after, before in zip(trained.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(after, before - 0.1 * before.grad, rtol=1e-4, atol=1e-6)


def test_labels_are_copied():
    for y in (torch.arange(4), np.arange(4), np.eye(4, dtype=np.float32), torch.eye(4)):
        before = copy.deepcopy(y)
        parse_labels(y, n=4, classes=4).fill_(1)
        assert (y == before).all()
