"""ART's PyTorchClassifier with an attack loss of its own."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.nn import BCELoss, BCEWithLogitsLoss, CrossEntropyLoss, Module, MultiMarginLoss, NLLLoss, RNNBase

# How ART hands labels to a loss: as class indices, as a column of 0 and 1, and otherwise one-hot.
_INDEX_LOSSES = (CrossEntropyLoss, NLLLoss, MultiMarginLoss)
_BINARY_LOSSES = (BCELoss, BCEWithLogitsLoss)


class HRClassifier(PyTorchClassifier):
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
            self._int_labels = isinstance(self._loss, _INDEX_LOSSES)
            self._reduce_labels = self._int_labels or isinstance(self._loss, _BINARY_LOSSES)
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
        labels = self._one_hot(y, len(x))
        with self._mode(training_mode, backward=True), torch.enable_grad():
            if self.all_framework_preprocessing:
                leaf = self._to_network(x).detach().clone().requires_grad_()
                inputs, labels = self._apply_preprocessing(leaf, labels, no_grad=False)
            else:
                preprocessed, numpy_labels = self._apply_preprocessing(x, labels.cpu().numpy())
                inputs = leaf = self._to_network(preprocessed).requires_grad_()
                labels = torch.as_tensor(numpy_labels)
            losses = reduced(self.attack_loss, self._model(inputs)[-1], labels, "none")
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        if isinstance(x, Tensor):
            return gradient.to(x.dtype) if x.is_floating_point() else gradient
        array = gradient.cpu().numpy()
        if not self.all_framework_preprocessing:
            array = self._apply_preprocessing_gradient(self._in_network_dtype(x), array)
        return np.asarray(array).astype(x.dtype if x.dtype.kind == "f" else array.dtype, copy=False)

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
        labels = self._one_hot(y, len(x))
        differentiable = isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled()
        with self._mode(False, backward=differentiable), torch.set_grad_enabled(differentiable):
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

    def class_gradient(
        self,
        x: np.ndarray,
        label: int | list[int] | np.ndarray | None = None,
        training_mode: bool = False,
        **kwargs: Any,
    ) -> np.ndarray:
        """As ART's, for images of any real dtype."""
        images = self._in_network_dtype(x)
        gradients: np.ndarray = super().class_gradient(images, label, training_mode=training_mode, **kwargs)
        return gradients

    def _apply_preprocessing(self, x: Any, y: Any, fit: bool = False, no_grad: bool = True) -> tuple[Any, Any]:
        """ART's preprocessing, of images in the network's dtype: every way into the network leads through here."""
        if isinstance(x, Tensor) and not self.all_framework_preprocessing:
            raise NotImplementedError(
                "expected x to be a NumPy array, because a preprocessing step is not written in torch, but got a tensor"
            )
        images, labels = super()._apply_preprocessing(self._in_network_dtype(x), y, fit=fit, no_grad=no_grad)
        return self._in_network_dtype(images), labels  # a step in NumPy may have given another dtype

    def _in_network_dtype(self, x: Any) -> Any:
        """Images of a real dtype in that of the network's parameters; anything else as it is."""
        parameters = (p.dtype for p in self.model.parameters() if p.is_floating_point())
        dtype = next(parameters, torch.float32)
        if isinstance(x, Tensor):
            return x.to(dtype)
        if not isinstance(x, np.ndarray) or x.dtype.kind not in "fiub":
            return x
        numpy_dtype = {torch.float64: np.float64, torch.float16: np.float16}.get(dtype, np.float32)
        return x.astype(numpy_dtype, copy=False)

    def _to_network(self, x: np.ndarray | Tensor) -> Tensor:
        """Images as a tensor on the network's device and in its dtype; arrays are copied, for they may be read-only."""
        images = self._in_network_dtype(x)
        return images.to(self._device) if isinstance(images, Tensor) else torch.tensor(images, device=self._device)

    def _one_hot(self, y: np.ndarray | Tensor, n: int) -> Tensor:
        """Labels of `n` images, in either form, as floats of shape (n, nb_classes), on the network's device."""
        # Copied as well: a tensor made in inference mode cannot enter a graph, its copy can.
        labels = y.to(self._device).clone() if isinstance(y, Tensor) else torch.tensor(y, device=self._device)
        if labels.ndim == 0 or len(labels) != n:
            raise ValueError(f"expected labels for {n} images, but got shape {tuple(labels.shape)}")
        if labels.ndim == 2 and labels.shape[1] == self.nb_classes and self.nb_classes > 1:
            # A row without weight, or with NaN, has no gradient: the attack would stand still and look withstood.
            if not bool((labels.isfinite() & (labels >= 0)).all() and (labels.sum(1) > 0).all()):
                raise ValueError("expected rows of labels to be finite, not negative and not all 0, but got others")
            return labels.float() if not labels.is_floating_point() else labels
        if labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1):
            index = labels.reshape(-1).long()
            if bool(((index != labels.reshape(-1)) | (index < 0) | (index >= self.nb_classes)).any()):
                raise ValueError(
                    f"expected class indices, whole numbers from 0 to {self.nb_classes - 1}, "
                    f"but got values from {labels.min()} to {labels.max()}"
                )
            return torch.nn.functional.one_hot(index, self.nb_classes).float()
        raise ValueError(
            f"expected labels of shape (n,), (n, 1) or (n, {self.nb_classes}), but got {tuple(labels.shape)}"
        )

    @contextmanager
    def _mode(self, training_mode: bool, *, backward: bool) -> Iterator[None]:
        """The network in the given mode, and each of its modules back in its own afterwards, whatever happens."""
        recurrent = [(module, module.dropout) for module in self._model.modules() if isinstance(module, RNNBase)]
        with modes_kept(self._model):
            self._model.train(training_mode)
            try:
                if backward and not training_mode:
                    # cuDNN runs these backwards in training mode only; what that mode changes in them is their dropout.
                    for module, _ in recurrent:
                        module.training, module.dropout = True, 0.0
                yield
            finally:
                for module, dropout in recurrent:
                    module.dropout = dropout

    def __getstate__(self) -> dict[str, Any]:
        """The state with the bare network in place of ART's wrapper, whose class is local and cannot be pickled."""
        state = self.__dict__.copy()
        del state["_model_wrapper"]
        return {**state, "_model": self.model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore, with a wrapper made anew."""
        self.__dict__.update(state)
        self._model = self._make_model_wrapper(state["_model"])

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


@contextmanager
def modes_kept(*networks: Module) -> Iterator[None]:
    """Every module of the networks back in its own mode afterwards: ART's predict leaves them in evaluation mode."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _check_attack_loss(loss: object) -> None:
    if not isinstance(loss, Module):
        raise TypeError(f"expected the attack loss to be a torch.nn.Module, but got {type(loss).__name__}")


def reduced(loss: Module, logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """The loss under a reduction, the module itself left as it is; "none" gives shape (n,)."""
    own_reduction = hasattr(loss, "reduction")
    if own_reduction:
        loss = copy.copy(loss)  # shares the weights; the caller's module keeps its own reduction
        setattr(loss, "reduction", reduction)  # noqa: B010  # to mypy, a module's attributes are tensors
    elif reduction not in ("none", "mean", "sum"):
        raise ValueError(f"expected reduction to be one of ['none', 'mean', 'sum'], but got {reduction!r}")
    values: Tensor = loss(logits, _target(loss, labels.to(logits.device, logits.dtype)))
    if own_reduction and reduction != "none":
        return values
    if values.ndim == 0 or len(values) != len(logits):
        raise ValueError(
            f"expected {type(loss).__name__} to give one value per example, shape ({len(logits)},), so that an attack "
            f"on one image does not depend on the others, but got shape {tuple(values.shape)}"
        )
    values = values if values.ndim == 1 else values.flatten(1).sum(1)
    if reduction == "none":
        return values
    return values.mean() if reduction == "mean" else values.sum()


def _target(loss: Module, labels: Tensor) -> Tensor:
    """Labels of shape (n, M) in the form that ART gives to a loss of this kind."""
    if isinstance(loss, _BINARY_LOSSES):
        return labels.argmax(1, keepdim=True).to(labels.dtype)
    probabilities = isinstance(loss, CrossEntropyLoss) and not torch.equal(labels, labels.floor())
    return labels.argmax(1) if isinstance(loss, _INDEX_LOSSES) and not probabilities else labels
