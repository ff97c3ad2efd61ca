"""Records hold what a plain torch loop would measure."""

from pathlib import Path

import numpy as np
import pytest
import torch

from art_hrloss import HRClassifier
from benchmarks import attacks, data, evaluation, training
from benchmarks.config import AttackSpec, LossSpec, Recipe, RunSpec
from benchmarks.data import Dataset, Split
from benchmarks.losses import attack_loss
from benchmarks.store import Store

CPU = torch.device("cpu")
RUN = RunSpec(
    "digits", Recipe(model="small-cnn", epochs=6, batch_size=50, lr=3e-3, optimizer="adam"), LossSpec("ce"), 0
)
ATTACKS = [AttackSpec("none"), *(AttackSpec("fgm", loss, 0.1) for loss in ("ce", "hr", "torch-ce"))]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load("digits", data_dir=Path("none"), validation_size=180)


@pytest.fixture(scope="module")
def trained(digits: Dataset, tmp_path_factory) -> Store:
    store = Store(tmp_path_factory.mktemp("store"))
    training.train(RUN, digits, store, device=CPU)
    return store


@pytest.fixture
def surer(trained: Store, digits: Dataset) -> HRClassifier:
    """The trained network with its logits times 6: it decides as before, at margins past 17."""
    classifier = evaluation.load_classifier(RUN, digits, trained, device_type="cpu")
    with torch.no_grad():
        for parameter in classifier.model[1][-1].parameters():
            parameter *= 6
    return classifier


def plain_fgsm(model, images: torch.Tensor, labels: torch.Tensor, loss: str, eps: float) -> torch.Tensor:
    """FGSM in plain torch, with the gradient in float64."""
    leaf = images.double().requires_grad_()
    log_q = model.double()(leaf).log_softmax(1)
    value = -log_q.gather(1, labels[:, None])
    if loss == "hr":
        value = value - (log_q.exp() * log_q).sum(1, keepdim=True)
    gradient = torch.autograd.grad(value.sum(), leaf)[0]
    model.float()
    return (images + eps * gradient.sign().float()).clamp(0, 1)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.key())
def test_a_record_is_what_plain_torch_measures(trained: Store, digits: Dataset, attack: AttackSpec) -> None:
    evaluation.evaluate(RUN, [attack], digits, trained, device_type="cpu")
    model = training.new_model(RUN, digits).eval()
    model.load_state_dict(trained.load_checkpoint(RUN))
    images, labels = training.tensors(digits.test, CPU)
    if attack.loss is not None:
        images = plain_fgsm(model, images, labels, "hr" if attack.loss == "hr" else "ce", attack.eps)
    record = trained.record(RUN, attack)
    assert record["n"] == 360
    assert record["correct"] == int((model(images).argmax(1) == labels).sum())
    assert record.get("zero_gradient") == (None if attack.loss is None else 0)


def test_masking_by_float32_shows_in_torchs_cross_entropy_alone(surer: HRClassifier, digits: Dataset) -> None:
    """The control: past a margin of 17 torch's gradient goes astray."""
    images, labels = training.tensors(digits.test, CPU)
    correct = {}
    for attack in ATTACKS[1:]:
        correct[attack.loss] = evaluation.measure(attack, surer, images.numpy(), labels.numpy())["correct"]
    for loss in ("ce", "hr"):
        attacked = plain_fgsm(surer.model.eval(), images, labels, loss, 0.1)
        exact = int((surer.model(attacked).argmax(1) == labels).sum())
        # The network itself still computes in float32: where a pixel's gradient is near 0, its sign may differ.
        assert abs(correct[loss] - exact) <= 2
    assert correct["torch-ce"] > correct["ce"] + 10


def test_records_that_are_there_are_not_made_again(trained: Store, digits: Dataset) -> None:
    marked = {"n": 360, "correct": -1}
    trained.save_record(RUN, ATTACKS[0], marked)
    missing = AttackSpec("fgm", "ce", 0.2)
    evaluation.evaluate(RUN, [ATTACKS[0], missing], digits, trained, device_type="cpu")
    assert trained.record(RUN, ATTACKS[0]) == marked
    assert trained.record(RUN, missing) is not None


class DeadWhereDark(torch.nn.Module):
    """A network that passes no gradient back to an image that is black, nor to the top row of any."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        black = (images == 0).flatten(1).all(1, keepdim=True)
        logits = self.network(torch.cat([images[:, :, :1].detach(), images[:, :, 1:]], dim=2))
        return torch.where(black, logits.detach(), logits)


def test_zero_gradients_are_counted(digits: Dataset) -> None:
    network = DeadWhereDark(training.new_model(RUN, digits))
    classifier = HRClassifier(network, torch.nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1))
    images = digits.test.images.astype(np.float32) / 255
    images[::12] = 0
    assert evaluation.measure(ATTACKS[1], classifier, images, digits.test.labels)["zero_gradient"] == 30


def test_splits_are_attacked_at_their_true_labels(trained: Store, digits: Dataset) -> None:
    """With wrong labels FGSM walks towards the right class: the labels do reach the attack."""
    classifier = evaluation.load_classifier(RUN, digits, trained, device_type="cpu")
    images = digits.test.images.astype(np.float32) / 255
    wrong = Split(digits.test.images, (digits.test.labels + 1) % 10)
    attacked = attacks.build(ATTACKS[1], classifier, batch_size=100).generate(images, wrong.labels)
    kept = (classifier.predict(attacked).argmax(1) == digits.test.labels).mean()
    assert kept > evaluation.measure(ATTACKS[1], classifier, images, digits.test.labels)["correct"] / len(images)


def test_zero_gradients_are_those_of_the_loss_that_drives_the_attack(surer: HRClassifier, digits: Dataset) -> None:
    """At such margins the clipped cross-entropy is saturated at many images, and the exact one at none."""
    images, labels = training.tensors(digits.test, CPU)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(attack_loss("clipped-ce")(surer.model.eval()(leaf), labels).sum(), leaf)
    masked = int((gradient == 0).flatten(1).all(1).sum())
    assert 36 < masked < 324, "some, and not all, in each of the batches"
    counted = {
        loss: evaluation.measure(AttackSpec("fgm", loss, 0.1), surer, images.numpy(), labels.numpy())
        for loss in ("clipped-ce", "ce")
    }
    # Batches of other sizes may round a margin at the very edge to its other side.
    assert abs(counted["clipped-ce"]["zero_gradient"] - masked) <= 1
    assert counted["ce"]["zero_gradient"] == 0
