"""ART's PyTorchClassifier with an attack loss of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.nn import CrossEntropyLoss, Module

from art_hrloss._context import in_mode
from art_hrloss._inputs import AnyDtypeClassifier
from art_hrloss._labels import BINARY_LOSSES, INDEX_LOSSES, one_hot, reduced, target_for


class Point(NamedTuple):
    """What one pass through the network tells of images: a loss, a row of logits and a gradient for each, no graph."""

    losses: Tensor
    logits: Tensor
    gradient: Tensor | None

    @property
    def slope(self) -> Tensor:
        """The gradient of a point that was asked for it."""
        assert self.gradient is not None
        return self.gradient


class HRClassifier(AnyDtypeClassifier):
    """
    A PyTorchClassifier whose attacks see a per-example loss, while training uses the loss as given.

    The HR loss of a batch couples its examples, so its gradient at one image depends on the others. The paper attacks
    with the loss "evaluated at (x, y)": the per-example loss. Here `loss_gradient` and `compute_loss`, which are what
    ART's attacks use, come from `attack_loss`, summed over the examples, so that an adversarial image is the same at
    every batch size and in every order. `fit`, and with it every trainer of ART, uses `loss`.

    Beyond PyTorchClassifier: `loss_gradient` and `compute_loss` neither compute nor touch the gradients of the
    parameters, leave the network in the mode it was found in, and take labels as indices or one-hot; images may be of
    any real dtype everywhere; `set_params(loss=...)` also renews the form of the labels; a pickle needs no file beside
    it.
    """

    estimator_params = [*PyTorchClassifier.estimator_params, "attack_loss"]  # noqa: RUF012  # ART's own declaration

    def __init__(self, *args: Any, attack_loss: Module | None = None, **kwargs: Any) -> None:
        """
        :param args: As for PyTorchClassifier: model, loss, input_shape, nb_classes, optimizer, ...
        :param attack_loss: The loss whose gradients drive attacks: a loss with a `reduction`, which is set to "none"
               on a copy, or any module that maps (logits, labels) to one value per example, shape ``(n,)``. The
               default is the per-example form of `loss`.
        :param kwargs: As for PyTorchClassifier.
        :raises TypeError: If `attack_loss` is not a module.
        """
        if attack_loss is not None:
            _check_attack_loss(attack_loss)
        super().__init__(*args, **kwargs)
        self._attack_loss = attack_loss

    @property
    def attack_loss(self) -> Module:
        """The loss that drives attacks; it is taken per example, whatever its own reduction is."""
        loss: Module = self._loss if self._attack_loss is None else self._attack_loss
        return loss

    def get_params(self) -> dict[str, Any]:
        """The parameters by name; attack_loss is None where it follows loss."""
        return {**super().get_params(), "attack_loss": self._attack_loss}

    def set_params(self, **kwargs: Any) -> None:
        """
        Set parameters by name, as ART does.

        :param kwargs: Any of `estimator_params`. A new `loss` also decides anew which form of labels it is given.
        """
        if kwargs.get("attack_loss") is not None:
            _check_attack_loss(kwargs["attack_loss"])
        if "model" in kwargs:
            self._model = self._make_model_wrapper(kwargs.pop("model")).to(self.device)
        super().set_params(**kwargs)
        if "loss" in kwargs:
            self._int_labels = isinstance(self._loss, INDEX_LOSSES)
            self._reduce_labels = self._int_labels or isinstance(self._loss, BINARY_LOSSES)
            self._probability_labels = isinstance(self._loss, CrossEntropyLoss)

    def loss_gradient(
        self, x: np.ndarray | Tensor, y: np.ndarray | Tensor, training_mode: bool = False, **kwargs: Any
    ) -> np.ndarray | Tensor:
        """
        Gradient of the summed attack loss by the input alone: for each example, that of its own loss.

        :param x: Images, shape ``(n, *input_shape)``, of any real dtype.
        :param y: Class indices, shape ``(n,)`` or ``(n, 1)``, or one-hot labels or probabilities, ``(n, nb_classes)``.
        :param training_mode: Whether the network runs in training mode, its dropout and batch statistics active.
        :return: An array or tensor, as `x` is, of the shape of `x`, and of its dtype if that is floating.
        :raises ValueError: If the labels fit neither form, or the attack loss does not give one value per example.
        """
        self._check_kind(x)
        labels = self.attack_labels(y, len(x))
        with in_mode(self.model, training_mode, backward=True):
            point = self.evaluate(x if isinstance(x, Tensor) else self._to_network(x), labels)
        if isinstance(x, Tensor):
            return point.slope
        gradient: np.ndarray = point.slope.cpu().numpy()
        return gradient.astype(x.dtype, copy=False) if x.dtype.kind == "f" else gradient

    def attack_labels(self, y: np.ndarray | Tensor, n: int) -> Tensor:
        """
        Labels checked, and once for all steps of an attack in the form that :meth:`evaluate` takes.

        :param y: Class indices, one-hot labels or probabilities, as for `loss_gradient`.
        :param n: How many images they belong to.
        :return: On the network's device: as the attack loss takes them, or rows if a preprocessing step may want them.
        :raises ValueError: If they fit neither form.
        """
        rows = one_hot(y, n, self.nb_classes, self._device).to(self._network_dtype())
        return target_for(self.attack_loss, rows) if self._preprocessing_is_identity() else rows

    @contextmanager
    def attacking(self) -> Iterator[None]:
        """The network in evaluation mode for calls of :meth:`evaluate`, and as it was afterwards."""
        with in_mode(self.model, False, backward=True):
            yield

    def evaluate(self, x: Tensor, labels: Tensor, *, gradient: bool = True) -> Point:
        """
        The attack loss and its gradient from a single pass forward and a single pass back.

        An attack asks here once per step, within :meth:`attacking`; so does `loss_gradient`. A subclass that watches or
        changes what attacks are told overrides this.

        :param x: Images, shape ``(n, *input_shape)``; they are left alone.
        :param labels: What :meth:`attack_labels` has made of theirs.
        :param gradient: Whether to go back; without, the point's gradient is None.
        :return: Losses ``(n,)``, logits ``(n, nb_classes)``, and the gradient of the summed losses by `x` alone, in the
                 dtype of `x` if that is floating.
        """
        images = self._to_network(x).detach()
        if not self.all_framework_preprocessing:
            point = self._evaluate_past_numpy(images, labels, gradient=gradient)
        else:
            leaf = images.clone() if images.is_inference() else images  # such a tensor cannot enter a graph
            with torch.set_grad_enabled(gradient):
                inputs, labels = self._apply_preprocessing(leaf.requires_grad_(gradient), labels, no_grad=not gradient)
                point = self._pass(inputs, labels, leaf if gradient else None)
        if point.gradient is None or not x.is_floating_point():
            return point
        return point._replace(gradient=point.gradient.to(x.dtype))

    def _evaluate_past_numpy(self, images: Tensor, labels: Tensor, *, gradient: bool) -> Point:
        """The same where a preprocessing step is in NumPy, with the gradient that ART gives to the step."""
        array = images.cpu().numpy()
        preprocessed, rows = self._apply_preprocessing(array, labels.cpu().numpy())
        with torch.set_grad_enabled(gradient):
            leaf = self._to_network(preprocessed).requires_grad_(gradient)
            point = self._pass(leaf, torch.as_tensor(rows), leaf if gradient else None)
        if point.gradient is None:
            return point
        back = np.asarray(self._apply_preprocessing_gradient(array, point.gradient.cpu().numpy()))
        return point._replace(gradient=torch.as_tensor(back, device=self._device))

    def _pass(self, inputs: Tensor, labels: Tensor, leaf: Tensor | None) -> Point:
        """Through the network and the attack loss, and back to `leaf` unless that is None."""
        logits = self._model(inputs)[-1]
        losses = reduced(self.attack_loss, logits, labels, "none")
        gradient = None if leaf is None else torch.autograd.grad(losses.sum(), leaf)[0]
        return Point(losses.detach(), logits.detach(), gradient)

    def compute_loss(
        self,
        x: np.ndarray | Tensor,
        y: np.ndarray | Tensor,
        reduction: str = "none",
        *,
        batch_size: int = 128,
        **kwargs: Any,
    ) -> np.ndarray | Tensor:
        """
        The attack loss, in evaluation mode.

        The logits are computed in batches and without a graph, unless `x` is a tensor that requires gradients; the loss
        is then taken over all of them at once, so that no reduction depends on the batches.

        :param x: Images, shape ``(n, *input_shape)``, of any real dtype.
        :param y: Class indices, one-hot labels or probabilities, as for `loss_gradient`.
        :param reduction: "none", "mean" or "sum"; also "batch" if the attack loss is an HRLoss.
        :param batch_size: How many images go through the network at once.
        :return: An array or tensor, as `x` is: shape ``(n,)`` for "none", else a scalar. In nats for HRLoss.
        """
        labels = one_hot(y, len(x), self.nb_classes, self._device)
        differentiable = isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled()
        with in_mode(self.model, False, backward=differentiable), torch.set_grad_enabled(differentiable):
            if isinstance(x, Tensor):
                inputs, labels = self._apply_preprocessing(self._to_network(x), labels, no_grad=not differentiable)
            else:
                inputs, numpy_labels = self._apply_preprocessing(x, labels.cpu().numpy())
                labels = torch.as_tensor(numpy_labels)
            size = max(1, len(inputs)) if differentiable else batch_size
            batches = [inputs[i : i + size] for i in range(0, max(1, len(inputs)), size)]
            logits = torch.cat([self._model(self._to_network(batch))[-1] for batch in batches])
            loss = reduced(self.attack_loss, logits, labels, reduction)
        return loss if isinstance(x, Tensor) else loss.cpu().numpy()

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, attack_loss={self._attack_loss})"


def attack_view(classifier: PyTorchClassifier, loss: Module) -> HRClassifier:
    """
    A sibling of `classifier` on the same network, attacked through `loss`.

    It shares network, optimizer, clip values and preprocessing; whatever happens to the network is seen by both. So
    one trained classifier can be attacked through cross-entropy, the HR loss, or any other.

    :param classifier: A PyTorchClassifier or HRClassifier; it is not changed.
    :param loss: The loss that drives attacks, as `attack_loss` of :class:`HRClassifier`.
    :return: A classifier whose training loss is that of `classifier` and whose attack loss is `loss`.
    :raises TypeError: If `classifier` is not a PyTorchClassifier, or one of a kind that has gradients of its own, such
            as randomized smoothing, which an attack through this view would pass by; or if `loss` is not a module.
    """
    if not isinstance(classifier, PyTorchClassifier):
        raise TypeError(f"expected classifier to be a PyTorchClassifier, but got {type(classifier).__name__}")
    if type(classifier).loss_gradient not in (PyTorchClassifier.loss_gradient, HRClassifier.loss_gradient):
        raise TypeError(f"expected a classifier with ART's own loss_gradient, but got {type(classifier).__name__}'s")
    _check_attack_loss(loss)
    return HRClassifier(classifier.model, attack_loss=loss, **shared_options(classifier))


def shared_options(classifier: PyTorchClassifier) -> dict[str, Any]:
    """What a sibling of `classifier` on the same network is made with, but for the network itself."""
    names = (
        "loss",
        "input_shape",
        "nb_classes",
        "optimizer",
        "channels_first",
        "clip_values",
        "preprocessing_defences",
        "postprocessing_defences",
        "preprocessing",
        "device_type",
    )
    return {name: getattr(classifier, name) for name in names}


def _check_attack_loss(loss: object) -> None:
    if not isinstance(loss, Module):
        raise TypeError(f"expected the attack loss to be a torch.nn.Module, but got {type(loss).__name__}")
