"""Shared fixtures: scikit-learn's real digits, a small network trained on them, and classifiers with this network."""

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from torch import Tensor, nn

from art_hrloss import HRClassifier, HRLoss

# Processes that tests start must find the project and the helpers, independent of the working folder.
TESTS = Path(__file__).parent
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(TESTS.parent), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
)

INPUT_SHAPE = (1, 8, 8)
CLASSES = 10
TRAINING_IMAGES = 1297  # of 1797; the other 500 are test images


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need CUDA if it is not available."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="wants CUDA"))


class Digits(NamedTuple):
    """Images as float32 of shape (n, 1, 8, 8) in [0, 1], labels as int64 of shape (n,)."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


class SmallCNN(nn.Module):
    """Two convolutions and two linear layers; not an nn.Sequential, which some of ART's trainers do not support."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.fc1 = nn.Linear(16 * 2 * 2, 32)
        self.fc2 = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (n, 10)."""
        x = nn.functional.max_pool2d(self.conv1(x).relu(), 2)
        x = nn.functional.max_pool2d(self.conv2(x).relu(), 2)
        return self.fc2(self.fc1(x.flatten(1)).relu())


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread, which is fastest for small networks, gives reproducible sums, and is robust on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits() -> Digits:
    """The digits in a fixed random order, because the file groups them by writer."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    images = (x[order] / 16).astype(np.float32).reshape(-1, *INPUT_SHAPE)
    labels = y[order].astype(np.int64)
    (x_train, x_test), (y_train, y_test) = (np.split(part, [TRAINING_IMAGES]) for part in (images, labels))
    return Digits(x_train, y_train, x_test, y_test)


@pytest.fixture(scope="session")
def trained_network(one_thread: None, digits: Digits) -> SmallCNN:
    """The network after 20 epochs with the HR loss, in evaluation mode. Tests use copies: see `network`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SmallCNN()
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        images, labels, loss = torch.tensor(digits.x_train), torch.tensor(digits.y_train), HRLoss()
        for _ in range(20):
            for batch in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                loss(network(images[batch]), labels[batch]).backward()
                optimizer.step()
    network.eval()
    with torch.no_grad():
        predictions = network(torch.tensor(digits.x_test)).argmax(1).numpy()
    assert (predictions == digits.y_test).mean() > 0.9
    return network


@pytest.fixture
def batch(digits: Digits) -> tuple[np.ndarray, np.ndarray]:
    """Copies of 40 test images and their labels."""
    return digits.x_test[:40].copy(), digits.y_test[:40].copy()


@pytest.fixture
def network(trained_network: SmallCNN) -> SmallCNN:
    """A copy of the trained network, in evaluation mode."""
    return copy.deepcopy(trained_network)


def _factory(classifier: type, trained_network: nn.Module) -> Callable[..., Any]:
    def make(loss: nn.Module | None = None, *, network: nn.Module | None = None, **options: Any) -> Any:
        network = copy.deepcopy(trained_network) if network is None else network
        options = {"input_shape": INPUT_SHAPE, "nb_classes": CLASSES, "clip_values": (0.0, 1.0), **options}
        options.setdefault("optimizer", torch.optim.Adam(network.parameters(), lr=1e-3))
        return classifier(network, HRLoss() if loss is None else loss, device_type="cpu", **options)

    return make


@pytest.fixture
def hr_classifier(trained_network: SmallCNN) -> Callable[..., HRClassifier]:
    """A function (loss=HRLoss(), *, network=a copy of the trained network, **options) that returns an HRClassifier."""
    return _factory(HRClassifier, trained_network)


@pytest.fixture
def art_classifier(trained_network: SmallCNN) -> Callable[..., PyTorchClassifier]:
    """A function like `hr_classifier` that returns ART's PyTorchClassifier."""
    return _factory(PyTorchClassifier, trained_network)
