"""What the gradient attacks of this package share: their parameters, restarts, and the first adversarial iterate."""

import inspect
import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.nn import Module
from tqdm.auto import tqdm

from art_hrloss._base_classifier import AnyInputClassifier
from art_hrloss._context import modes_kept
from art_hrloss._labels import class_indices, parse_labels
from art_hrloss._network import as_array
from art_hrloss._preconditions import checked_tensor
from art_hrloss.attacks._constraints import Array, FeasibleSet, at_least_one, check_units, rows_of
from art_hrloss.attacks._losses import MARGIN, AttackLossName, attack_loss
from art_hrloss.classifier import as_hr_classifier

logger = logging.getLogger(__name__)


class Batch:
    """Images under attack, on the network's device; those that an iterate misclassifies may leave it."""

    def __init__(self, region: FeasibleSet, labels: Tensor, mask: Tensor | None, eps_step: Any) -> None:
        """
        :param labels: The labels, or targets, as :func:`~art_hrloss._labels.parse_labels` returns them.
        :param mask: Where images may change, of their shape; None is everywhere.
        :param eps_step: The length of a step, a number or an array that broadcasts with the images.
        """
        self.region, self.labels, self.mask, self.eps_step = region, labels, mask, eps_step
        # Of the images that have not left: their classes, and their positions in the batch at first.
        self.classes = (labels if labels.ndim == 1 else labels.argmax(1)).to(region.images.device)
        self.rows = torch.arange(len(labels), device=region.images.device)
        # Of those that have: their positions, and their first adversarial iterates.
        self.adversarial: list[tuple[Tensor, Tensor]] = []


class TensorAttack:
    """
    Base of attacks on arrays or tensors; of tensors the attacked images are tensors, on the classifier's device.

    It is no class of ART's, whose metaclass has every `generate` that it finds in one turn tensors into arrays.
    """

    def generate(self, x: Any, y: Any = None, **kwargs: Any) -> Any:
        """
        Return adversarial images, float32 of shape ``(n, *input_shape)``.

        :param x: Images, finite and inside clip_values. Of an array only a batch at a time is on the device; a tensor
               is brought to the device and stays there from the first step to the last.
        :param y: True labels, or targets if targeted, in any form; by default the predictions.
        :param kwargs: `mask`, of the gradient attacks: where a step may change an image, in a shape that broadcasts
               with it. Auto-PGD's random start, as ART's, ignores it but for `restarts` or `keep_first`.
        :return: An array or tensor, as `x` is.
        """
        adversarial = self._attacked(x, y, **kwargs)
        return adversarial if isinstance(x, Tensor) else adversarial.numpy()

    def _attacked(self, x: Any, y: Any, **kwargs: Any) -> Tensor:
        """Return adversarial images where the images are: of arrays on the CPU, of tensors on the device."""
        raise NotImplementedError


class LossAttack(TensorAttack, EvasionAttack):
    """Base of the gradient attacks: what they add to ART's, the parameters `loss`, `restarts` and `keep_first`."""

    extra_params = ("loss", "restarts", "keep_first")
    # ART's number of random starts, and its default, which `restarts` replaces.
    starts_param: tuple[str, int]
    # ART's name of the length of a step.
    step_param = "eps_step"
    target_classes = 0

    def __init__(
        self,
        estimator: Any,
        *args: Any,
        loss: AttackLossName | Module | None = None,
        restarts: int | None = None,
        keep_first: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        :param estimator: A PyTorchClassifier or HRClassifier.
        :param args: ART's parameters, in ART's order or by name. `eps` is in units of the images.
        :param loss: The loss to ascend: "ce", "hr", "margin", "dlr", or a module as HRClassifier's `attack_loss`. By
               default that of the estimator.
        :param restarts: The number of restarts. Each begins at a random point and attacks only the images that no
               earlier one has made adversarial. If None, ART's random initialisations run instead.
        :param keep_first: Whether the attack of an image stops at its first adversarial iterate. ART's attacks return
               the last iterate, even if only an earlier one was adversarial.
        :raises ValueError: If a parameter is out of its range, or conflicts with another one.
        :raises TypeError: If the estimator is no PyTorchClassifier, or computes gradients in a way of its own.
        """
        self._classifier = as_hr_classifier(estimator)
        # ART's constructor does not know of these, but checks them already.
        self.loss, self.restarts, self.keep_first = loss, restarts, keep_first
        with modes_kept(estimator.model):  # ART's Auto-PGD predicts, to see whether the outputs are probabilities
            super().__init__(estimator, *map(plain, args), **{name: plain(value) for name, value in kwargs.items()})
        self._check_params()

    def __init_subclass__(cls) -> None:
        """Show ART's parameters by name in the signature of an attack, and after them those of this package."""
        super().__init_subclass__()
        arts: list[inspect.Parameter] = []
        added: dict[str, inspect.Parameter] = {}
        for base in (base for base in cls.__mro__ if "__init__" in vars(base)):
            parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())
            if base.__module__.startswith("art."):
                arts = [p for p in parameters[1:] if p.kind is p.POSITIONAL_OR_KEYWORD]  # without self
                break
            added |= {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
        cls.__signature__ = inspect.Signature([*arts, *added.values()])

    def set_params(self, **kwargs: Any) -> None:
        """Set parameters by name, as ART does; if one is refused, with the reason, none is changed."""
        before = self.__dict__.copy()
        try:
            super().set_params(**{name: plain(value) for name, value in kwargs.items()})
        except Exception:
            self.__dict__.update(before)
            raise

    def _check_params(self) -> None:
        super()._check_params()
        self._loss = None if self.loss is None else attack_loss(self.loss)
        if self.targeted and self.loss == "dlr":
            raise ValueError(
                "expected another loss for a targeted attack, but got 'dlr', whose minimum need not be the target: use "
                "loss='margin', or target_classes of AutoProjectedGradientDescent"
            )
        if not isinstance(self.keep_first, bool):
            raise ValueError(f"expected keep_first to be True or False, but got {self.keep_first!r}")
        check_units(self.eps, self.norm, self.estimator.clip_values)
        if not np.isfinite(self.eps_step).all():
            raise ValueError(f"expected eps_step to be finite, but got {self.eps_step}")
        name, default = self.starts_param
        if self.restarts is not None and getattr(self, name) not in (default, at_least_one("restarts", self.restarts)):
            raise ValueError(
                f"expected either restarts or {name}, but got {self.restarts} and {getattr(self, name)}: restarts "
                "attack again only the images that no earlier one has made adversarial"
            )
        if self._stops_early and self.summary_writer is not None:
            raise ValueError(
                "expected no summary_writer with restarts or keep_first, but got one: ART's has no such rows"
            )

    @property
    def _stops_early(self) -> bool:
        """True if an image is not attacked again once it is adversarial."""
        return bool(self.restarts is not None or self.keep_first)

    def _checked(self, x: Any, y: Any, options: dict[str, Any]) -> tuple[Tensor, Tensor, Array | None]:
        """
        Return images, labels, by default the predictions, and the mask; check the arguments.

        The images have at least the precision of float32: NumPy, and so ART, computes in that of both.
        """
        if options.keys() - {"mask"}:
            raise TypeError(f"expected no keyword but mask, but got {sorted(options)}")
        mask = plain(options.get("mask"))
        if mask is not None and not np.isfinite(mask).all():
            raise ValueError("expected a mask of finite numbers, 0 where an image must not change, but got others")
        given = x.detach().to(self._classifier.device) if isinstance(x, Tensor) else np.asarray(x)
        if len(given):
            checked_tensor(self.estimator, given)
        if isinstance(given, Tensor):
            images = given.to(torch.promote_types(torch.float32, given.dtype))
        else:
            double = np.result_type(np.float32, given.dtype).itemsize > 4
            images = torch.from_numpy(given.astype(np.float64 if double else np.float32, order="C"))
        if y is not None:
            labels = parse_labels(y, n=len(images), classes=self.estimator.nb_classes)
            return images, labels.to(images.device), mask
        if self.targeted:
            raise ValueError("expected y, the target classes, for a targeted attack, but got None")
        return images, self._predict(given).to(images.device), mask

    def _predict(self, images: Tensor | Array) -> Tensor:
        return predicted_classes(self.estimator, images, self.batch_size)

    def _logits(self, points: Tensor, classes: Tensor) -> Tensor:
        """Return the logits at images, by the door into the network."""
        if not len(points):
            return points.new_zeros(0, self.estimator.nb_classes)
        labels = self._classifier.attack_labels(classes, len(points), MARGIN)
        with self._classifier.attacking():
            return self._classifier.evaluate(points, labels, loss=MARGIN, gradient=False).logits

    def _batch(self, images: Tensor, labels: Tensor, mask: Array | None, rows: Any) -> Batch:
        """Return some of all the images, given by a slice or indices, with their part of each parameter."""
        x = images[rows].to(self._classifier.device)
        eps, eps_step, part = (
            rows_of(values, rows, len(images), images.ndim)
            for values in (self.eps, getattr(self, self.step_param), mask)
        )
        if part is not None:
            part = torch.tensor(np.broadcast_to(np.asarray(part, dtype=np.float32), x.shape), device=x.device)
        region = FeasibleSet(x, eps, norm=self.norm, clip_values=self.estimator.clip_values)
        return Batch(region, labels[rows], part, eps_step)

    def _attack_unfinished(self, x: Tensor, labels: Tensor, mask: Array | None) -> Tensor:
        """Attack, attempt by attempt, the images that no earlier one has made adversarial; return an image for each."""
        images, home = x.float(), x.device
        classes = class_indices(labels, n=len(x), classes=self.estimator.nb_classes)
        adversarial, robust = images.clone(), (self._predict(images) == classes) != self.targeted
        attempts = self.target_classes or self.restarts or max(1, getattr(self, self.starts_param[0]))
        for attempt in self._bar(range(int(attempts)), "restart"):
            rows = robust.nonzero().squeeze(1)
            for start in self._bar(range(0, len(rows), self.batch_size), "batch"):
                part = rows[start : start + self.batch_size]
                batch = self._batch(images, labels, mask, part)
                points, logits = self._attempt(batch, attempt)
                adversarial[part[batch.rows.to(home)]] = points.to(home)
                self._remove(batch, points, logits)
                for gone, iterates in batch.adversarial:
                    adversarial[part[gone.to(home)]], robust[part[gone.to(home)]] = iterates.to(home), False
        return adversarial

    def _attempt(self, batch: Batch, attempt: int) -> tuple[Tensor, Tensor]:
        """Attack a batch, the attempts counted from 0; return the last iterates of those that stay, and the logits."""
        raise NotImplementedError

    def _remove(self, batch: Batch, points: Tensor, logits: Tensor) -> Tensor | None:
        """
        Store the iterates that are adversarial, and let their images leave the batch.

        :return: Which images stay, shape ``(len(points),)``; None if all do.
        """
        hit = (self._classifier.predicted_classes(logits) == batch.classes) == self.targeted
        if not bool(hit.any()):
            return None
        batch.adversarial.append((batch.rows[hit], points[hit]))
        stay: Tensor = ~hit
        batch.eps_step = rows_of(batch.eps_step, stay, len(points), points.ndim)
        batch.mask = None if batch.mask is None else batch.mask[stay]
        batch.region, batch.classes, batch.rows = batch.region.select(stay), batch.classes[stay], batch.rows[stay]
        return stay

    def _bar(self, values: Iterable[int], name: str) -> Any:
        """Return ART's progress bar around values."""
        verbose = getattr(self, "verbose", False)  # which FastGradientMethod lacks
        return tqdm(values, desc=f"{type(self).__name__} - {name}", leave=False, disable=not verbose)


def predicted_classes(estimator: Any, images: Tensor | Array, batch_size: int) -> Tensor:
    """
    Return the classes that a classifier of ART's predicts, int64 of shape ``(n,)``; its modes are restored.

    :param images: An array of any dtype, or a tensor, which is not brought to another device unless the classifier is
           one of ART's own, or has a `predict` of its own.
    """
    device = images.device if isinstance(images, Tensor) else torch.device("cpu")
    if isinstance(images, Tensor) and takes_tensors(estimator):
        outputs: Tensor | npt.NDArray[Any] = estimator.predict_tensor(images, batch_size=batch_size)
    else:
        array = as_array(images) if isinstance(images, Tensor) else images
        with modes_kept(*([estimator.model] if isinstance(estimator, PyTorchClassifier) else [])):
            outputs = estimator.predict(array, batch_size=batch_size)
    if outputs.shape[1] < 2:
        raise ValueError(
            f"expected predictions of shape (n, {estimator.nb_classes}), one logit per class, but got {outputs.shape}: "
            "its largest entry is always class 0. Give the network a second output of constant 0"
        )
    return torch.as_tensor(outputs.argmax(1), device=device)


def takes_tensors(estimator: Any) -> bool:
    """Return whether a classifier's predictions of tensors are those of its `predict`, without a detour by NumPy."""
    own = getattr(getattr(estimator, "predict", None), "__func__", None)
    return own is AnyInputClassifier.predict and bool(estimator.all_framework_preprocessing)


def plain(value: Any) -> Any:
    """Return a NumPy number as Python's, for ART refuses NumPy's, and a tensor as an array."""
    value = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    is_number = isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0)
    return value.item() if is_number else value


def warn_of_nan(largest: Tensor) -> None:
    """Warn, as ART does, of NaN in a gradient, given its largest entry, or that of several gradients."""
    if largest.isnan():
        logger.warning("Elements of the loss gradient are NaN and have been replaced with 0.0.")
