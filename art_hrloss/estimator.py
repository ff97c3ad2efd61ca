"""ART's PyTorchClassifier with an attack loss of its own."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from torch import Tensor
from torch.nn import BCELoss, BCEWithLogitsLoss, CrossEntropyLoss, Module, MultiMarginLoss, NLLLoss, RNNBase

# How ART hands labels to a loss: as class indices, as a column of 0 and 1, and otherwise one-hot.
_INDEX_LOSSES = (CrossEntropyLoss, NLLLoss, MultiMarginLoss)
_BINARY_LOSSES = (BCELoss, BCEWithLogitsLoss)


class Point(NamedTuple):
    """What one pass through the network tells of images: a loss, a row of logits and a gradient for each, no graph."""

    losses: Tensor
    logits: Tensor
    gradient: Tensor | None


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
        self._check_kind(x)
        labels = self.attack_labels(y, len(x))
        with self._mode(training_mode, backward=True):
            point = self.evaluate(x if isinstance(x, Tensor) else self._to_network(x), labels)
        assert point.gradient is not None
        if isinstance(x, Tensor):
            return point.gradient
        gradient: np.ndarray = point.gradient.cpu().numpy()
        return gradient.astype(x.dtype, copy=False) if x.dtype.kind == "f" else gradient

    def attack_labels(self, y: np.ndarray | Tensor, n: int) -> Tensor:
        """
        Labels checked, and once for all steps of an attack in the form that :meth:`evaluate` takes.

        :param y: Class indices, one-hot labels or probabilities, as for `loss_gradient`.
        :param n: How many images they belong to.
        :return: On the network's device: as the attack loss takes them, or rows if a preprocessing step may want them.
        :raises ValueError: If they fit neither form.
        """
        rows = self._one_hot(y, n).to(self._network_dtype())
        return _target(self.attack_loss, rows) if self._preprocessing_is_identity() else rows

    @contextmanager
    def attacking(self) -> Iterator[None]:
        """The network in evaluation mode for calls of :meth:`evaluate`, and as it was afterwards."""
        with self._mode(False, backward=True):
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

    def predict(self, x: np.ndarray, batch_size: int = 128, training_mode: bool = False, **kwargs: Any) -> np.ndarray:
        """As ART's, which also leaves the network in that mode, but without its collecting of single images."""
        self._model.train(mode=training_mode)
        inputs, _ = self._apply_preprocessing(x, None)
        with torch.no_grad():
            batches = [inputs[i : i + batch_size] for i in range(0, max(1, len(inputs)), batch_size)]
            outputs = [self._model(self._to_network(batch))[-1].cpu().numpy() for batch in batches]
        rows = np.concatenate(outputs).astype(np.float32, copy=False)
        rows = rows[:, np.newaxis] if rows.ndim == 1 else rows
        predictions: np.ndarray = self._apply_postprocessing(preds=rows, fit=False)
        return predictions

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
        self._check_kind(x)
        images = self._in_network_dtype(x)
        if isinstance(images, Tensor) and self._preprocessing_is_identity():
            return images.clone(), y  # a copy, because a network may begin with a step in place
        images, labels = super()._apply_preprocessing(images, y, fit=fit, no_grad=no_grad)
        return self._in_network_dtype(images), labels  # a step in NumPy may have given another dtype

    def _check_kind(self, x: Any) -> None:
        if isinstance(x, Tensor) and not self.all_framework_preprocessing:
            raise NotImplementedError(
                "expected x to be a NumPy array, because a preprocessing step is not written in torch, but got a tensor"
            )

    def _preprocessing_is_identity(self) -> bool:
        """Whether there is no preprocessing but, perhaps, ART's default: to subtract 0 and divide by 1."""
        return all(
            type(step) is StandardisationMeanStdPyTorch and not step.mean.any() and bool((step.std == 1).all())
            for step in self.preprocessing_operations
        )

    def _network_dtype(self) -> torch.dtype:
        """That of the network's parameters."""
        parameters = (p.dtype for p in self.model.parameters() if p.is_floating_point())
        return next(parameters, torch.float32)

    def _in_network_dtype(self, x: Any) -> Any:
        """Images of a real dtype in that of the network's parameters; anything else as it is."""
        dtype = self._network_dtype()
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
        modules = list(self._model.modules())
        modes = [module.training for module in modules]
        recurrent = [(module, module.dropout) for module in modules if isinstance(module, RNNBase)]
        try:
            if any(mode != training_mode for mode in modes):
                self._model.train(training_mode)
            if backward and not training_mode:
                # cuDNN runs these backwards in training mode only; what that mode changes in them is their dropout.
                for module, _ in recurrent:
                    module.training, module.dropout = True, 0.0
            yield
        finally:
            for module, dropout in recurrent:
                module.dropout = dropout
            for module, mode in zip(modules, modes, strict=True):
                if module.training != mode:
                    module.training = mode

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
    if own_reduction and loss.reduction != reduction:
        loss = copy.copy(loss)  # shares the weights; the caller's module keeps its own reduction
        setattr(loss, "reduction", reduction)  # noqa: B010  # to mypy, a module's attributes are tensors
    elif not own_reduction and reduction not in ("none", "mean", "sum"):
        raise ValueError(f"expected reduction to be one of ['none', 'mean', 'sum'], but got {reduction!r}")
    target = _target(loss, labels.to(logits.device, logits.dtype if labels.is_floating_point() else None))
    values: Tensor = loss(logits, target)
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
    """Labels of shape (n, M) in the form that ART gives to a loss of this kind; those in that form stay as they are."""
    if not labels.is_floating_point() or labels.shape[1] == 1:
        return labels
    if isinstance(loss, _BINARY_LOSSES):
        return labels.argmax(1, keepdim=True).to(labels.dtype)
    probabilities = isinstance(loss, CrossEntropyLoss) and not torch.equal(labels, labels.floor())
    return labels.argmax(1) if isinstance(loss, _INDEX_LOSSES) and not probabilities else labels
