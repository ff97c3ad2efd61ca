"""Tests of _network and _base_classifier: precisions, outputs, dtypes of images, preprocessing, and pickles."""

import copy
import pickle
import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import art.config
import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod
from art.defences.postprocessor import Rounded
from art.defences.preprocessor import FeatureSqueezing, SpatialSmoothing
from art.defences.preprocessor.preprocessor import Preprocessor, PreprocessorPyTorch
from torch import nn

from art_hrloss import HRLoss
from benchmarks.autoattack.masked import Around

ROOT = Path(__file__).parents[1]
# Methods of the classifier, as functions from (classifier, images, labels) to an array.
METHODS = {
    "predict": lambda c, x, y: c.predict(x),
    "compute_loss": lambda c, x, y: c.compute_loss(x, y),
    "loss_gradient": lambda c, x, y: c.loss_gradient(x, y),
    "class_gradient": lambda c, x, y: c.class_gradient(x, label=3),
    "fit": lambda c, x, y: (torch.manual_seed(0), c.fit(x, y, nb_epochs=1, batch_size=20), c.predict(x))[-1],
    "FGSM": lambda c, x, y: FastGradientMethod(c, eps=0.1).generate(x, y),
}
# Without the sign, which rounding of a gradient near 0 may change.
SMOOTH = {name: METHODS[name] for name in METHODS if name != "FGSM"} | {
    "FGM": lambda c, x, y: FastGradientMethod(c, norm=2, eps=1.0).generate(x, y)
}
GRADIENTS = (METHODS["loss_gradient"], METHODS["class_gradient"])
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


class Autocasting(Around):
    """A float32 network that computes in bfloat16."""

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x)


class Backwards(nn.Sequential):
    """A subclass of Sequential whose forward does more than call its layers one after another."""

    def forward(self, x):
        return super().forward(x.flip(3))


@dataclass
class ModelOutput:
    """An output like that of the models of transformers."""

    logits: torch.Tensor


def error(actual, expected):
    """Return the norm of the difference, relative to the norm of the expected values."""
    assert actual.shape == expected.shape
    return np.linalg.norm(np.subtract(actual, expected, dtype=np.float64)) / np.linalg.norm(expected.astype(np.float64))


def half_attacked(classifier, x, y):
    """Images of which the network misclassifies some, so that gradients are far from 0."""
    return FastGradientMethod(classifier, eps=0.1).generate(x, y)


# ------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("method", SMOOTH.values(), ids=SMOOTH)
@pytest.mark.parametrize(
    ("build", "tolerance"),
    [
        pytest.param(lambda network: network.bfloat16(), 0.1, id="bfloat16"),
        pytest.param(Autocasting, 0.1, id="autocast"),
        pytest.param(lambda network: network.half(), 0.01, id="float16"),
        pytest.param(lambda network: network, 1e-5, id="float32"),
        pytest.param(lambda network: network.double(), 1e-6, id="float64"),
    ],
)
def test_networks_of_every_precision_agree_with_float64(hr_classifier, batch, build, tolerance, method):
    """A smooth untrained network, whose gradients are not sensitive to the rounding of the processor."""
    x, y = batch
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    reference, network = copy.deepcopy(network).double(), build(network)
    classifiers = [
        hr_classifier(network=one, optimizer=torch.optim.SGD(one.parameters(), lr=0.1)) for one in (reference, network)
    ]
    expected, actual = (method(classifier, x, y) for classifier in classifiers)
    wide = method is METHODS["compute_loss"] and next(network.parameters()).dtype == torch.float64
    assert actual.dtype == (np.float64 if wide else np.float32)
    assert error(actual, expected) < tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_an_evaluation_has_the_gradient_in_the_networks_dtype(hr_classifier, network, batch, dtype):
    classifier = hr_classifier(network=network.to(dtype))
    with classifier.attacking():
        point = classifier.evaluate(torch.tensor(batch[0]), classifier.attack_labels(batch[1], 40))
    logits = torch.float64 if dtype == torch.float64 else torch.float32
    assert [part.dtype for part in point] == [logits, logits, dtype]


def test_a_float64_network_is_evaluated_in_float64(hr_classifier, network, batch):
    """A float32 operation anywhere between image and gradient would cause an error of 1e-7."""
    x, y = batch
    x = (x + np.random.default_rng(0).uniform(0, 0.1, x.shape)).astype(np.float64)
    leaf = torch.tensor(x, requires_grad=True)
    losses = HRLoss(reduction="none")(network.double()(leaf), torch.tensor(y))
    classifier = hr_classifier(network=network)
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    assert error(classifier.loss_gradient(x, y), gradient.numpy()) < 1e-12
    assert error(classifier.loss_gradient(leaf, torch.tensor(y)).numpy(), gradient.numpy()) < 1e-12
    assert error(classifier.compute_loss(x, y), losses.detach().numpy()) < 1e-12


# ------------------------------------------------------------------------------------------------- dtypes of images


@every_method
@pytest.mark.parametrize("preprocessing", [None, (0.0, 1.0), (0.3, 0.5)], ids=["none", "identity", "standardised"])
def test_the_memory_layout_of_images_has_no_effect(hr_classifier, batch, preprocessing, method):
    x, y = batch
    read_only = np.frombuffer(x.tobytes(), dtype=x.dtype).reshape(x.shape)
    expected = method(hr_classifier(preprocessing=preprocessing), x, y)
    for images in (
        read_only,
        x.astype(">f4"),
        np.asfortranarray(x),
        np.repeat(x, 2, axis=0)[::2],
        x[::-1, :, ::-1].copy()[::-1, :, ::-1],
    ):
        np.testing.assert_array_equal(method(hr_classifier(preprocessing=preprocessing), images, y), expected)


@every_method
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, ">i2", bool, np.float16, np.float64, np.longdouble], ids=str)
def test_images_of_every_real_dtype_have_the_values_of_float32(hr_classifier, network, batch, dtype, method):
    """Whole numbers from 0 to 16, black and white, or sixteenths: float16 represents all of them exactly."""
    x, y = batch
    scale = 16 if np.dtype(dtype).kind in "iu" else 1
    images = x > 0.5 if dtype is bool else (scale * x).astype(dtype)
    actual, expected = (
        method(hr_classifier(network=Around(copy.deepcopy(network), lambda z: z / scale)), form, y)
        for form in (images, images.astype(np.float32))
    )
    # Gradients have the dtype of the images, if that is floating.
    kind = np.float32 if np.dtype(dtype).kind != "f" or method not in GRADIENTS else dtype
    assert actual.dtype == kind
    # ART adds the perturbation in the dtype of the images.
    np.testing.assert_allclose(actual, expected.astype(kind), rtol=1e-6)


@pytest.mark.parametrize("method", [m for n, m in METHODS.items() if n != "FGSM"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, ">i4"], ids=str)
def test_integers_without_preprocessing_reach_the_network_unchanged(hr_classifier, dtype, method):
    """The network scales uint8 images itself, or embeds tokens; integers have no gradient."""
    dtypes, x = [], np.random.default_rng(0).integers(0, 100, (6, 8)).astype(dtype)
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Embedding(100, 4), nn.Flatten(), nn.Linear(32, 10))
    network = Around(layers, before=lambda z: dtypes.append(z.dtype) or z.int())
    classifier = hr_classifier(network=network, input_shape=(8,), preprocessing=None, clip_values=(0, 255))
    if method in GRADIENTS:
        with pytest.raises(ValueError, match=r"expected floating-point images, but got .*int.*preprocessing=None"):
            method(classifier, x, np.arange(6))
        return
    actual = method(classifier, x, np.arange(6))
    assert set(dtypes) == {torch.from_numpy(x.astype(np.dtype(dtype).newbyteorder("="))).dtype}
    logits = layers(torch.tensor(x.astype(np.int64)))
    losses = HRLoss(reduction="none")(logits, torch.arange(6))
    expected = losses if method is METHODS["compute_loss"] else logits
    assert error(actual, expected.detach().numpy()) < 1e-5


# ----------------------------------------------------------------------------------------------------------- outputs


@every_method
@pytest.mark.parametrize(
    ("after", "name"),
    [
        (lambda logits: (logits, None), "tuple"),
        (lambda logits: {"logits": logits}, "dict"),
        (lambda logits: [logits], "list"),
        (ModelOutput, "ModelOutput"),
        (namedtuple("Outputs", "logits"), "Outputs"),
    ],
    ids=["tuple", "dict", "list", "dataclass", "named tuple"],
)
def test_an_output_that_is_not_a_tensor_raises_an_error(hr_classifier, network, batch, after, name, method):
    with pytest.raises(TypeError, match=f"expected the network to return a tensor of logits, but got a {name}:"):
        method(hr_classifier(network=Around(network, after=after)), *batch)


@every_method
@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda network: nn.Sequential(network), id="Sequential"),
        pytest.param(lambda network: nn.Sequential(nn.Sequential(nn.Identity(), network)), id="nested"),
        pytest.param(lambda network: Backwards(Around(network, lambda x: x.flip(3))), id="Sequential-with-forward"),
    ],
)
def test_a_sequential_with_its_own_forward_is_called(hr_classifier, network, batch, build, method):
    expected = method(hr_classifier(network=copy.deepcopy(network)), *batch)
    np.testing.assert_array_equal(method(hr_classifier(network=build(network)), *batch), expected)


@pytest.mark.parametrize("method", [m for n, m in METHODS.items() if n != "class_gradient"])
def test_one_number_per_image_is_a_column_of_one_output(hr_classifier, batch, method):
    """A binary network; ART reshapes its output in predict only."""
    x, y = batch
    results = []
    for shape in (nn.Identity(), nn.Flatten(0)):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), shape)
        results.append(method(hr_classifier(nn.BCEWithLogitsLoss(), network=network, nb_classes=2), x, y % 2))
    np.testing.assert_array_equal(*results)


def test_layers_and_activations_equal_those_of_art(hr_classifier, art_classifier, network, batch):
    sequential = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 10))
    for one in (network, sequential):
        ours, arts = hr_classifier(network=one), art_classifier(network=one)
        assert ours.layer_names == arts.layer_names
        for layer in range(len(ours.layer_names) if one is sequential else 1):
            activations = [c.get_activations(batch[0], layer, batch_size=16) for c in (ours, arts)]
            np.testing.assert_array_equal(*activations)


# ----------------------------------------------------------------------------------- preprocessing and postprocessing


class Relabelled(Preprocessor):
    """A preprocessing step in NumPy that replaces every label by the next class."""

    params = []  # noqa: RUF012  # ART's own declaration

    def __call__(self, x, y=None):
        return x, None if y is None else np.roll(y, 1, 1)


class Squared(PreprocessorPyTorch):
    """A step in torch whose derivative differs between pixels, and which replaces every label by the next class."""

    params = []  # noqa: RUF012  # ART's own declaration

    def forward(self, x, y=None):
        return x.square(), None if y is None else y.roll(1, 1)


@pytest.mark.parametrize("arrays", [False, True], ids=["scalars", "arrays"])
@every_method
def test_standardisation_is_part_of_the_network(hr_classifier, network, digits, batch, arrays, method):
    mean, std = (digits.x_train.mean(0), digits.x_train.std(0) + 0.1) if arrays else (0.3, 0.7)
    inside = Around(copy.deepcopy(network), lambda x: (x - torch.as_tensor(mean)) / torch.as_tensor(std))
    expected = method(hr_classifier(network=inside), *batch)
    assert error(method(hr_classifier(preprocessing=(mean, std)), *batch), expected) < 1e-5


@pytest.mark.parametrize("method", [METHODS["compute_loss"], METHODS["loss_gradient"]], ids=["loss", "gradient"])
def test_a_step_in_torch_is_differentiated_and_gets_labels(hr_classifier, network, batch, method):
    x, y = batch
    classifier = hr_classifier(preprocessing_defences=Squared(device_type="cpu"))
    expected = method(hr_classifier(network=Around(network, torch.square)), x, (y + 1) % 10)
    assert error(method(classifier, x, y), expected) < 1e-5
    assert error(method(classifier, torch.tensor(x), torch.tensor(y)).numpy(), expected) < 1e-5


@pytest.mark.parametrize("method", [m for n, m in METHODS.items() if n != "class_gradient"])
def test_a_step_in_numpy_gets_labels(hr_classifier, batch, method):
    x, y = batch
    expected = method(hr_classifier(), x, (y + 1) % 10)
    actual = method(hr_classifier(preprocessing_defences=Relabelled()), x, y)
    assert error(actual, expected) < 1e-5
    assert method is METHODS["predict"] or error(actual, method(hr_classifier(), x, y)) > 1e-2


@pytest.mark.parametrize("preprocessing", [None, (0.3, 0.7)], ids=["alone", "standardised"])
def test_a_step_in_numpy_has_the_gradient_that_art_estimates(hr_classifier, art_classifier, batch, preprocessing):
    x, y = batch
    smoothing = SpatialSmoothing(window_size=3, channels_first=True, clip_values=(0, 1))
    options = {"preprocessing_defences": smoothing, "preprocessing": preprocessing}
    plain = art_classifier(nn.CrossEntropyLoss(reduction="sum"), **options).loss_gradient(x, np.eye(10, dtype="f4")[y])
    classifier = hr_classifier(attack_loss=nn.CrossEntropyLoss(), **options)
    assert error(classifier.loss_gradient(x, y), plain) < 1e-5
    assert error(hr_classifier(nn.CrossEntropyLoss()).loss_gradient(x, y), plain) > 0.1  # without the step
    whole = hr_classifier(network=Around(classifier.model, lambda z: z / 16), **options | {"preprocessing": None})
    images = (16 * x).astype(np.uint8)
    assert error(whole.loss_gradient(images, y), whole.loss_gradient(images.astype(np.float32), y)) < 1e-5


@pytest.mark.parametrize("method", [m for n, m in METHODS.items() if n != "FGSM"])
def test_a_step_in_numpy_may_change_the_dtype(hr_classifier, network, batch, method):
    """
    FeatureSqueezing returns float64, which ART's classifier rejects. Its derivative is defined as the identity. The
    first layer of the network may work in place.
    """
    squeezing = FeatureSqueezing(clip_values=(0, 1), bit_depth=2, apply_fit=True)
    squeezed, identity = squeezing(batch[0])[0], nn.LeakyReLU(1.0, inplace=True)
    assert squeezed.dtype == np.float64
    expected = method(hr_classifier(), squeezed.astype(np.float32), batch[1])
    actual = method(hr_classifier(network=nn.Sequential(identity, network), preprocessing_defences=squeezing), *batch)
    assert error(actual, expected) < 1e-5


def test_a_step_in_numpy_raises_an_error_for_tensors(hr_classifier, batch):
    classifier = hr_classifier(preprocessing_defences=SpatialSmoothing(channels_first=True, clip_values=(0, 1)))
    for method in (classifier.loss_gradient, classifier.compute_loss):
        with pytest.raises(NotImplementedError, match="expected x to be a NumPy array"):
            method(*map(torch.tensor, batch))


def test_predicted_classes_equal_those_of_predict_after_postprocessing(hr_classifier, network, batch):
    """Rounding to tenths causes ties, for which the first class is predicted."""
    network = Around(network, after=lambda logits: logits / 200)
    classifier, plain = (hr_classifier(network=network, postprocessing_defences=d) for d in (Rounded(decimals=1), None))
    logits = torch.tensor(plain.predict(batch[0]))
    classes = classifier.predicted_classes(logits)
    assert classes.dtype == torch.int64
    assert classes.tolist() == classifier.predict(batch[0]).argmax(1).tolist()
    assert classes.tolist() != plain.predicted_classes(logits).tolist() == logits.argmax(1).tolist()


# -------------------------------------------------------------------------------------------- pickles and processes


@pytest.fixture
def art_data(tmp_path, monkeypatch):
    """An empty folder as ART's data folder."""
    folder = tmp_path / "art-data"
    folder.mkdir()
    monkeypatch.setattr(art.config, "ART_DATA_PATH", str(folder))
    return folder


@pytest.fixture
def sequential(hr_classifier, batch):
    """A trained classifier of modules of torch, so that any process can unpickle it."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    classifier = hr_classifier(network=network, attack_loss=nn.CrossEntropyLoss(), preprocessing=(0.3, 0.7))
    classifier.fit(*batch, nb_epochs=1)
    return classifier


@pytest.mark.parametrize("copied", [lambda c: pickle.loads(pickle.dumps(c)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_copies_are_equal_and_independent(sequential, batch, art_data, copied):
    predictions, gradient = sequential.predict(batch[0]), sequential.loss_gradient(*batch)
    sequential.model.train()
    with sequential.observed_by(lambda *_: pytest.fail("the copy is observed")):
        other = copied(sequential)
    assert list(art_data.iterdir()) == []
    assert other.model.training
    np.testing.assert_array_equal(other.predict(batch[0]), predictions)
    np.testing.assert_array_equal(other.loss_gradient(*batch), gradient)
    # The optimizer refers to the parameters of the copy, with Adam's moments.
    held = {id(parameter) for group in other.optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in other.model.parameters()} == {*map(id, other.optimizer.state)}
    trained = METHODS["fit"](other, *batch)
    assert not np.array_equal(trained, predictions)
    np.testing.assert_array_equal(sequential.predict(batch[0]), predictions)
    np.testing.assert_array_equal(METHODS["fit"](sequential, *batch), trained)


UNPICKLE = """
import pickle, sys
import art.config, numpy as np
folder, art.config.ART_DATA_PATH = sys.argv[1:]
with open(folder + "/classifier", "rb") as file:
    classifier = pickle.load(file)
images, labels = np.load(folder + "/images.npy"), np.load(folder + "/labels.npy")
np.save(folder + "/predict.npy", classifier.predict(images))
np.save(folder + "/loss_gradient.npy", classifier.loss_gradient(images, labels))
classifier.fit(images, labels, nb_epochs=1)
"""


def test_a_pickle_is_read_in_a_fresh_process(sequential, batch, tmp_path, art_data):
    (tmp_path / "classifier").write_bytes(pickle.dumps(sequential))
    np.save(tmp_path / "images.npy", batch[0])
    np.save(tmp_path / "labels.npy", batch[1])
    command = [sys.executable, "-W", "error", "-c", UNPICKLE, str(tmp_path), str(art_data)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    # Another process may use another number of threads, and therefore another order of summation.
    for name in ("predict", "loss_gradient"):
        assert error(np.load(tmp_path / f"{name}.npy"), METHODS[name](sequential, *batch)) < 1e-5
    assert list(art_data.iterdir()) == []


def test_load_reads_the_weights_and_the_optimizer_that_save_wrote(sequential, batch, tmp_path):
    other = copy.deepcopy(sequential)
    sequential.save("classifier", str(tmp_path))
    predictions, trained = sequential.predict(batch[0]), METHODS["fit"](sequential, *batch)
    METHODS["fit"](other, *batch)
    for classifier in (other, sequential):
        classifier.load("classifier", str(tmp_path))
        np.testing.assert_array_equal(classifier.predict(batch[0]), predictions)
        np.testing.assert_array_equal(METHODS["fit"](classifier, *batch), trained)  # Adam continues with its moments
    with pytest.raises(FileNotFoundError):
        sequential.load("nothing", str(tmp_path))
