"""ART's PyTorchClassifier with an attack loss of its own, and one door through which attacks evaluate the network."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.nn import Module

from art_hrloss._context import in_mode
from art_hrloss._labels import check_no_image_ignored, label_rows, reduced, target_for
from art_hrloss._network import (
    AnyInputClassifier,
    Observer,
    Point,
    as_array,
    check_classifier,
    check_differentiable,
    check_losses,
    input_gradient,
)


class HRClassifier(AnyInputClassifier):
    """
    A PyTorchClassifier whose attacks see a per-example loss, while training uses the loss unchanged.

    The HR loss of a batch couples its examples, and the paper attacks with that of one example. Therefore
    `loss_gradient` and `compute_loss`, which ART's attacks call, use `attack_loss`, summed over the examples: an
    adversarial image is the same at every batch size and in every order. `fit`, and every trainer of ART, uses `loss`.

    All attacks, also those of :mod:`art_hrloss.attacks`, go through :meth:`evaluate`, the one door into the network. A
    subclass that changes what attacks see overrides it; an observer is registered by :meth:`observed_by`.

    Beyond PyTorchClassifier: labels in every usual form, checked; images of any real dtype; networks in any floating
    precision; no gradient of a parameter is computed or modified by an attack, nor any module's mode; pickles are
    single files; :meth:`load` reads what `save` wrote.

    >>> from art_hrloss import HRClassifier, HRLoss
    >>> classifier = HRClassifier(torch.nn.Linear(4, 3), HRLoss(), (4,), 3, clip_values=(0, 1), device_type="cpu")
    >>> classifier.loss_gradient(np.zeros((2, 4), dtype=np.float32), [0, 2]).shape
    (2, 4)
    """

    estimator_params = [*PyTorchClassifier.estimator_params, "attack_loss"]  # noqa: RUF012  # ART's own declaration

    def __init__(
        self,
        model: Module,
        loss: Module,
        input_shape: tuple[int, ...],
        nb_classes: int,
        optimizer: torch.optim.Optimizer | None = None,
        use_amp: bool = False,
        opt_level: str = "O1",
        loss_scale: float | str = "dynamic",
        channels_first: bool = True,
        clip_values: tuple[Any, Any] | None = None,
        preprocessing_defences: Any = None,
        postprocessing_defences: Any = None,
        preprocessing: Any = (0.0, 1.0),
        device_type: str = "gpu",
        *,
        attack_loss: Module | None = None,
    ) -> None:
        """
        All parameters but `attack_loss` are those of PyTorchClassifier; `device_type` is "gpu" or "cpu".

        :param model: The network, from images ``(n, *input_shape)`` to logits ``(n, nb_classes)``.
        :param loss: The training loss, a module such as :class:`~art_hrloss.HRLoss`.
        :param clip_values: The least and the greatest value of a pixel, for attacks.
        :param preprocessing: (mean, standard deviation), subtracted and divided by in front of the network. With None
               integer images, or tokens, reach the network in their own dtype.
        :param attack_loss: The loss whose gradients drive attacks: a loss with a `reduction`, which is set to "none" on
               a copy, or any module that maps (logits, labels) to one value per example, shape ``(n,)``. The default is
               the per-example form of `loss`.
        :raises TypeError: If a loss is not a module.
        """
        check_losses(loss=loss, attack_loss=attack_loss)
        self._observers: list[Observer] = []
        super().__init__(
            model=model,
            loss=loss,
            input_shape=input_shape,
            nb_classes=nb_classes,
            optimizer=optimizer,
            use_amp=use_amp,
            opt_level=opt_level,
            loss_scale=loss_scale,
            channels_first=channels_first,
            clip_values=clip_values,
            preprocessing_defences=preprocessing_defences,
            postprocessing_defences=postprocessing_defences,
            preprocessing=preprocessing,
            device_type=device_type,
        )
        self._attack_loss = attack_loss

    @property
    def attack_loss(self) -> Module:
        """The loss that drives attacks; it is taken per example, whatever its own reduction is."""
        loss: Module = self._loss if self._attack_loss is None else self._attack_loss
        return loss

    def get_params(self) -> dict[str, Any]:
        """Return the parameters by name; attack_loss is None where it follows loss."""
        return {**super().get_params(), "attack_loss": self._attack_loss}

    def evaluate(self, x: Tensor, labels: Tensor, *, loss: Module | None = None, gradient: bool = True) -> Point:
        """
        Return the attack loss, the logits and the loss's gradient from one forward and one backward pass.

        :param x: Images, shape ``(n, *input_shape)``; they are not modified.
        :param labels: The result of :meth:`attack_labels`, for the same loss.
        :param loss: Another loss in place of `attack_loss`.
        """
        images = self._to_network(x).detach()
        check_differentiable(images.is_floating_point() or not gradient, images.dtype)
        with torch.inference_mode(False), torch.set_grad_enabled(gradient):  # whatever the caller's mode is
            # A tensor made in inference mode cannot enter a graph.
            leaf, rows = (part.clone() if part.is_inference() else part for part in (images, labels))
            leaf.requires_grad_(gradient and self.all_framework_preprocessing)
            inputs, targets = self._preprocessed(leaf, rows)
            if not self.all_framework_preprocessing:
                leaf = inputs.requires_grad_(gradient)
            logits = self._model(inputs)[-1]
            losses = reduced(self.attack_loss if loss is None else loss, logits, targets, "none")
            slope = input_gradient(losses, leaf) if gradient else None
        if slope is not None and not self.all_framework_preprocessing:  # by the steps' own estimates
            slope = torch.as_tensor(self._apply_preprocessing_gradient(as_array(images), as_array(slope))).to(leaf)
        point = Point(losses.detach(), logits.detach(), slope)
        for observer in self._observers:
            observer(x, labels, point)
        return point

    def attacking(self) -> AbstractContextManager[None]:
        """Put the network in evaluation mode for an attack's calls of :meth:`evaluate`; restore its modes after."""
        return in_mode(self.model, False, backward=True)

    @contextmanager
    def observed_by(self, observer: Observer) -> Iterator[None]:
        """
        Register a function that is called after every evaluation, by whatever attack, ART's own included.

        :param observer: Takes the images ``(n, *input_shape)``, which an attack may overwrite afterwards, their labels,
               and the :class:`Point`.
        """
        self._observers.append(observer)
        try:
            yield
        finally:
            self._observers.remove(observer)

    def attack_labels(self, y: Any, n: int, loss: Module | None = None) -> Tensor:
        """
        Return labels, checked, in the form that :meth:`evaluate` takes: once for all steps of an attack.

        :param y: Class indices, one-hot labels or probabilities; see :func:`art_hrloss._labels.parse_labels`.
        :param loss: Another loss in place of `attack_loss`.
        :return: On the network's device: as the loss takes them, or rows if a preprocessing step may want them.
        :raises ValueError: If they have no such form, or the loss ignores some (`ignore_index`, class weights of 0).
        """
        loss = self.attack_loss if loss is None else loss
        dtype = torch.float64 if self._model.dtype == torch.float64 else torch.float32  # that of the logits
        rows = label_rows(y, n=n, classes=self.nb_classes).to(self._device, dtype)
        check_no_image_ignored(loss, rows)
        return target_for(loss, rows) if self._preprocessing_is_identity() else rows

    def loss_gradient(self, x: Any, y: Any, training_mode: bool = False, **kwargs: Any) -> Any:
        """
        Return the gradient of the summed attack loss by the images: for each, that of its own loss.

        :param x: Images, shape ``(n, *input_shape)``, an array of any real dtype or a tensor.
        :param y: Labels; see :meth:`attack_labels`.
        :param training_mode: Whether the network runs in training mode, its dropout and batch statistics active.
        :return: An array or tensor, as `x` is, of the shape of `x`, and of its dtype if that is floating.
        :raises ValueError: If :meth:`attack_labels` refuses, or the attack loss does not give one value per example.
        """
        self._check_kind(x)
        x = x if isinstance(x, Tensor) else np.asarray(x)
        labels = self.attack_labels(y, len(x))
        with in_mode(self.model, training_mode, backward=True):
            slope = self.evaluate(self._to_network(x), labels).slope
        if isinstance(x, Tensor):
            return slope.to(x.dtype) if x.is_floating_point() else slope
        gradient = as_array(slope)
        return gradient.astype(x.dtype, copy=False) if x.dtype.kind == "f" else gradient

    def compute_loss(self, x: Any, y: Any, reduction: str = "none", *, batch_size: int = 128, **kwargs: Any) -> Any:
        """
        Return the attack loss, in evaluation mode.

        The network is evaluated batch by batch; a reduction is then taken over all examples together, so that it does
        not depend on the batches. If `x` is a tensor that requires gradients the result is differentiable.

        :param x: Images, shape ``(n, *input_shape)``, of any real dtype.
        :param y: Labels; see :meth:`attack_labels`.
        :param reduction: "none", "mean" or "sum"; also "batch" if the attack loss is an HRLoss.
        :return: An array or tensor, as `x` is: shape ``(n,)`` for "none", else a scalar. Nats for HRLoss.
        """
        self._check_kind(x)
        labels = self.attack_labels(y, len(x))
        if isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled():
            with in_mode(self.model, False, backward=True):
                inputs, targets = self._preprocessed(self._to_network(x), labels)
                return reduced(self.attack_loss, self._model(inputs)[-1], targets, reduction)
        points, rows = [], []
        with in_mode(self.model, False, backward=False), torch.no_grad():
            for part in (slice(i, i + batch_size) for i in range(0, max(1, len(x)), batch_size)):
                images = self._to_network(x[part])
                points.append(self.evaluate(images, labels[part], gradient=False))
                if reduction != "none":
                    rows.append(self._preprocessed(images, labels[part])[1])
            loss = torch.cat([point.losses for point in points])
            if reduction != "none":  # over all examples together, from their logits
                logits = torch.cat([point.logits for point in points])
                loss = reduced(self.attack_loss, logits, torch.cat(rows), reduction)
        return loss if isinstance(x, Tensor) else as_array(loss)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without observers: they belong to whoever registered them."""
        return {**super().__getstate__(), "_observers": []}

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, attack_loss={self._attack_loss})"


def attack_view(classifier: PyTorchClassifier, loss: Module) -> HRClassifier:
    """
    Return a sibling of a classifier, on the same network, that is attacked through another loss.

    It shares network, training loss, optimizer, clip values and preprocessing; whatever happens to the network is seen
    by both. So one trained classifier can be attacked through cross-entropy, the HR loss, or any other.

    :param classifier: A PyTorchClassifier or HRClassifier; it is not modified.
    :param loss: The loss that drives attacks, as `attack_loss` of :class:`HRClassifier`.
    :raises TypeError: If `classifier` is not a PyTorchClassifier, or computes gradients in a way of its own, such as
            randomized smoothing, which an attack through this view would bypass; or if `loss` is not a module.

    >>> from art_hrloss import HRLoss
    >>> network = torch.nn.Linear(4, 3)
    >>> trained = PyTorchClassifier(network, torch.nn.CrossEntropyLoss(), (4,), 3, device_type="cpu")
    >>> attack_view(trained, HRLoss()).model is network
    True
    """
    _check_methods(classifier)
    check_losses(loss=loss)
    if not isinstance(classifier, HRClassifier):
        return HRClassifier(classifier.model, attack_loss=loss, **shared_options(classifier))
    view = copy.copy(classifier)  # of whatever subclass
    view.set_params(attack_loss=loss)
    return view


def as_hr_classifier(classifier: PyTorchClassifier) -> HRClassifier:
    """Return the classifier itself if it is an HRClassifier, else its :func:`attack_view` along its own loss."""
    _check_methods(classifier)
    return classifier if isinstance(classifier, HRClassifier) else attack_view(classifier, classifier.loss)


def shared_options(classifier: PyTorchClassifier) -> dict[str, Any]:
    """Return the constructor's options that a sibling of `classifier` shares, without the network."""
    apart = ("model", "use_amp", "opt_level", "loss_scale")  # apex has prepared the network already
    return {name: getattr(classifier, name) for name in PyTorchClassifier.estimator_params if name not in apart}


def _check_methods(classifier: PyTorchClassifier) -> None:
    """Raise unless attacks may evaluate the network by HRClassifier.evaluate: they would bypass any other method."""
    check_classifier(classifier)
    for name in ("loss_gradient", "compute_loss"):
        method = getattr(getattr(classifier, name), "__func__", None)
        if method not in (getattr(PyTorchClassifier, name), getattr(HRClassifier, name)):
            raise TypeError(
                f"expected a classifier with ART's or HRClassifier's {name}, but {type(classifier).__name__} replaces "
                "it, and an attack would bypass that: override HRClassifier.evaluate, through which every attack goes"
            )
