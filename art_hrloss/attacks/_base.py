"""Base of the gradient attacks: their parameters, restarts, and stopping at the first adversarial iterate."""

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
from art_hrloss.attacks._constraints import Array, Batch, FeasibleSet, at_least_one, check_units, rows_of
from art_hrloss.attacks._losses import MARGIN, AttackLossName, attack_loss
from art_hrloss.classifier import as_hr_classifier

logger = logging.getLogger(__name__)


class TensorAttack:
    """
    Base of attacks that accept arrays and tensors, and return tensors on the classifier's device for tensors.

    It is not a subclass of an ART class, because ART's metaclass wraps every method `generate` of a subclass such that
    tensors are converted to arrays.
    """

    def generate(self, x: Any, y: Any = None, **kwargs: Any) -> Any:
        """
        Return adversarial images, float32 of shape ``(n, *input_shape)``.

        :param x: Images, shape ``(n, *input_shape)``, finite and inside clip_values. An array is copied to the device
               batch by batch. A tensor is copied to the device completely and stays there during the attack.
        :param y: True labels, or target classes if targeted, in any usual form; by default the predicted classes.
        :param kwargs: `mask`, for gradient attacks: the pixels that may change, in a shape that broadcasts with the
               images. Without `restarts` and `keep_first`, the random start of Auto-PGD ignores it, as in ART.
        :return: An array or tensor, like `x`.
        :raises ValueError: If the images or labels are invalid.
        """
        adversarial = self._attacked(x, y, **kwargs)
        return adversarial if isinstance(x, Tensor) else adversarial.numpy()

    def _attacked(self, x: Any, y: Any, **kwargs: Any) -> Tensor:
        """Return adversarial images, on the CPU for an array, and on the classifier's device for a tensor."""
        raise NotImplementedError


class LossAttack(TensorAttack, EvasionAttack):
    """Base of the gradient attacks, with the additional parameters `loss`, `restarts` and `keep_first`."""

    extra_params = ("loss", "restarts", "keep_first")
    # ART's parameter for the number of random starts, and its default; `restarts` replaces it.
    starts_param: tuple[str, int]
    # ART's parameter for the length of a step.
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
        :param loss: The loss to maximise: "ce", "hr", "margin", "dlr" (see :func:`~art_hrloss.attacks.attack_loss`), or
               a module. The default is the attack loss of the estimator.
        :param restarts: The number of restarts. Each restart begins at a random point, and attacks only the images
               without an adversarial example from an earlier restart. None: ART's random initialisations.
        :param keep_first: Whether to stop the attack of an image at its first adversarial iterate. ART's attacks return
               the last iterate, even if only an earlier one was adversarial.
        :raises ValueError: If a parameter is out of its range, or conflicts with another one.
        :raises TypeError: If the estimator is not a PyTorchClassifier, or overrides `loss_gradient` or `compute_loss`.
        """
        self._classifier = as_hr_classifier(estimator)
        # These are set before ART's constructor, because it calls _check_params.
        self.loss, self.restarts, self.keep_first = loss, restarts, keep_first
        with modes_kept(estimator.model):  # the constructor of ART's Auto-PGD calls predict
            super().__init__(estimator, *map(to_python, args), **{name: to_python(x) for name, x in kwargs.items()})
        self._check_params()

    def __init_subclass__(cls) -> None:
        """Set the signature of an attack, for help(): ART's parameters, then the additional parameters."""
        super().__init_subclass__()
        art_parameters: list[inspect.Parameter] = []
        added: dict[str, inspect.Parameter] = {}
        for base in (base for base in cls.__mro__ if "__init__" in vars(base)):
            parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())
            if base.__module__.startswith("art."):
                art_parameters = [p for p in parameters[1:] if p.kind is p.POSITIONAL_OR_KEYWORD]  # without self
                break
            added |= {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
        cls.__signature__ = inspect.Signature([*art_parameters, *added.values()])

    def set_params(self, **kwargs: Any) -> None:
        """
        Set parameters by name, as in ART; if a value is invalid, no parameter is changed.

        :param kwargs: Any of the names in `attack_params`.
        :raises ValueError: If a parameter is out of its range, or conflicts with another one.
        """
        attributes = self.__dict__.copy()
        try:
            super().set_params(**{name: to_python(value) for name, value in kwargs.items()})
        except Exception:
            self.__dict__.update(attributes)
            raise

    def _check_params(self) -> None:
        super()._check_params()
        self._loss = None if self.loss is None else attack_loss(self.loss)
        if self.targeted and self.loss == "dlr":
            raise ValueError(
                "expected loss 'ce', 'hr' or 'margin' for a targeted attack, but got 'dlr', which does not have its "
                "minimum at the target class: use loss='margin', or target_classes of AutoProjectedGradientDescent"
            )
        if not isinstance(self.keep_first, bool):
            raise ValueError(f"expected keep_first to be True or False, but got {self.keep_first!r}")
        check_units(self.eps, self.norm, self.estimator.clip_values)
        if not np.isfinite(self.eps_step).all():
            raise ValueError(f"expected eps_step to be finite, but got {self.eps_step}")
        name, default = self.starts_param
        if self.restarts is not None and getattr(self, name) not in (default, at_least_one("restarts", self.restarts)):
            raise ValueError(
                f"expected either restarts or {name}, but got {self.restarts} and {getattr(self, name)}: use restarts, "
                "which skips the images that already have an adversarial example"
            )
        if self._stops_early and self.summary_writer is not None:
            raise ValueError(
                "expected no summary_writer with restarts or keep_first, but got one: ART's summary writer needs all "
                "images at every step"
            )

    @property
    def _stops_early(self) -> bool:
        """True if an image leaves the attack as soon as it is adversarial."""
        return bool(self.restarts is not None or self.keep_first)

    def _checked(self, x: Any, y: Any, options: dict[str, Any]) -> tuple[Tensor, Tensor, Array | None]:
        """
        Return images, labels (by default the predicted classes) and the mask, after checking the arguments.

        Images are float32, or float64 if `x` is: ART computes the first operations in the precision of `x`.
        """
        if options.keys() - {"mask"}:
            raise TypeError(f"expected no keyword but mask, but got {sorted(options)}")
        mask = to_python(options.get("mask"))
        if mask is not None and not np.isfinite(mask).all():
            raise ValueError(
                "expected a mask of finite numbers, 0 for pixels that must not change, but got NaN or infinity"
            )
        values = x.detach().to(self._classifier.device) if isinstance(x, Tensor) else np.asarray(x)
        if len(values):  # as in ART, an empty array is accepted
            checked_tensor(self.estimator, values)
        if isinstance(values, Tensor):
            images = values.to(torch.promote_types(torch.float32, values.dtype))
        else:
            double = np.result_type(np.float32, values.dtype).itemsize > 4
            images = torch.from_numpy(values.astype(np.float64 if double else np.float32, order="C"))
        if y is not None:
            labels = parse_labels(y, n=len(images), classes=self.estimator.nb_classes)
            return images, labels.to(images.device), mask
        if self.targeted:
            raise ValueError("expected y, the target classes, for a targeted attack, but got None")
        return images, self._predict(values).to(images.device), mask

    def _predict(self, images: Tensor | Array) -> Tensor:
        return predicted_classes(self.estimator, images, self.batch_size)

    def _logits(self, points: Tensor, classes: Tensor) -> Tensor:
        """Return the logits at images, through HRClassifier.evaluate, so that observers see this evaluation as well."""
        if not len(points):
            return points.new_zeros(0, self.estimator.nb_classes)
        # Only the logits are needed, and the margin is the cheapest loss.
        labels = self._classifier.attack_labels(classes, len(points), MARGIN)
        with self._classifier.attacking():
            return self._classifier.evaluate(points, labels, loss=MARGIN, gradient=False).logits

    def _batch(self, images: Tensor, labels: Tensor, mask: Array | None, rows: Any) -> Batch:
        """Return a batch of images, selected by a slice or indices, with its part of eps, the step and the mask."""
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
        """Return the images after all attempts; each attempt attacks only the images that are not yet adversarial."""
        images, device = x.float(), x.device
        classes = class_indices(labels, n=len(x), classes=self.estimator.nb_classes)
        # An image that is adversarial without attack is returned unchanged and not attacked.
        adversarial, robust = images.clone(), (self._predict(images) == classes) != self.targeted
        attempts = self.target_classes or self.restarts or max(1, getattr(self, self.starts_param[0]))
        for attempt in self._bar(range(int(attempts)), "restart"):
            rows = robust.nonzero().squeeze(1)
            for start in self._bar(range(0, len(rows), self.batch_size), "batch"):
                part = rows[start : start + self.batch_size]
                batch = self._batch(images, labels, mask, part)
                points, logits = self._attempt(batch, attempt)
                adversarial[part[batch.rows.to(device)]] = points.to(device)
                self._remove(batch, points, logits)
                for positions, iterates in batch.adversarial:
                    rows_of_part = part[positions.to(device)]
                    adversarial[rows_of_part], robust[rows_of_part] = iterates.to(device), False
        return adversarial

    def _attempt(self, batch: Batch, attempt: int) -> tuple[Tensor, Tensor]:
        """
        Run one attempt on a batch.

        :param attempt: The number of the attempt, from 0.
        :return: The last iterates of the images that are still in the batch, and their logits.
        """
        raise NotImplementedError

    def _remove(self, batch: Batch, points: Tensor, logits: Tensor) -> Tensor | None:
        """
        Store the adversarial iterates, and remove their images from the batch.

        :return: A mask of the images that stay, shape ``(len(points),)``; None if all stay.
        """
        success = (self._classifier.predicted_classes(logits) == batch.classes) == self.targeted
        if not bool(success.any()):
            return None
        batch.adversarial.append((batch.rows[success], points[success]))
        stay: Tensor = ~success
        batch.eps_step = rows_of(batch.eps_step, stay, len(points), points.ndim)
        batch.mask = None if batch.mask is None else batch.mask[stay]
        batch.region, batch.classes, batch.rows = batch.region.select(stay), batch.classes[stay], batch.rows[stay]
        return stay

    def _bar(self, values: Iterable[int], name: str) -> Any:
        """Return the values with a progress bar, if `verbose` is True."""
        verbose = getattr(self, "verbose", False)  # FastGradientMethod has no `verbose`
        return tqdm(values, desc=f"{type(self).__name__} - {name}", leave=False, disable=not verbose)


def predicted_classes(estimator: Any, images: Tensor | Array, batch_size: int) -> Tensor:
    """
    Return the classes that an ART classifier predicts, int64 of shape ``(n,)``; its modes are restored.

    :param estimator: Any classifier of ART.
    :param images: An array, or a tensor. A tensor is copied to the CPU only if the classifier cannot take tensors.
    :param batch_size: Images per prediction.
    """
    device = images.device if isinstance(images, Tensor) else torch.device("cpu")
    if isinstance(images, Tensor) and takes_tensors(estimator):  # no copy to the CPU and back
        outputs: Tensor | npt.NDArray[Any] = estimator.predict_tensor(images, batch_size=batch_size)
    else:
        array = as_array(images) if isinstance(images, Tensor) else images
        with modes_kept(*([estimator.model] if isinstance(estimator, PyTorchClassifier) else [])):
            outputs = estimator.predict(array, batch_size=batch_size)
    if outputs.shape[1] < 2:
        raise ValueError(
            f"expected predictions of shape (n, {estimator.nb_classes}), one logit per class, but got {outputs.shape}, "
            "whose largest entry is always class 0: add a second output, constant 0, to the network"
        )
    return torch.as_tensor(outputs.argmax(1), device=device)


def takes_tensors(estimator: Any) -> bool:
    """Return True if `predict_tensor` of the classifier is equivalent to its `predict`, which may be overridden."""
    method = getattr(getattr(estimator, "predict", None), "__func__", None)
    return method is AnyInputClassifier.predict and bool(estimator.all_framework_preprocessing)


def to_python(value: Any) -> Any:
    """Return a NumPy number as a Python number, because ART rejects NumPy numbers, and a tensor as an array."""
    value = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    is_number = isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0)
    return value.item() if is_number else value


def warn_of_nan(largest: Tensor) -> None:
    """Warn, as ART does, if the largest entry of the gradients is NaN, so that a gradient contains NaN."""
    if largest.isnan():
        logger.warning("Elements of the loss gradient are NaN and have been replaced with 0.0.")
