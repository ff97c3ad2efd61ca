"""ART's PyTorchClassifier for images of any real dtype, networks of any precision and labels in any form."""

import os
from typing import Any

import numpy as np
import torch
from art import config
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from torch import Tensor
from torch.nn import CrossEntropyLoss, Module

from art_hrloss._context import in_mode
from art_hrloss._labels import BINARY_LOSSES, INDEX_LOSSES, label_rows, target_for
from art_hrloss._network import Network, as_array, check_differentiable


class AnyInputClassifier(PyTorchClassifier):
    """A PyTorchClassifier for images of any real dtype, networks of any floating precision, and labels in any form."""

    _model: Network

    def set_params(self, **kwargs: Any) -> None:
        """
        Set parameters by name, as in ART; the form of the labels follows a new `loss`.

        :param kwargs: Any of the names in `estimator_params`.
        :raises TypeError: If a loss is not a module.
        """
        check_losses(**{name: kwargs[name] for name in ("loss", "attack_loss") if name in kwargs})
        if "model" in kwargs:
            self._model = self._make_model_wrapper(kwargs.pop("model")).to(self.device)
        super().set_params(**kwargs)
        if "loss" in kwargs:  # ART sets these in the constructor only, and its adversarial trainers read them
            self._int_labels = isinstance(self._loss, INDEX_LOSSES)
            self._reduce_labels = self._int_labels or isinstance(self._loss, BINARY_LOSSES)
            self._probability_labels = isinstance(self._loss, CrossEntropyLoss)

    def fit(self, x: Any, y: Any, batch_size: int = 128, nb_epochs: int = 10, **kwargs: Any) -> None:
        """
        Train the network with `loss` and the optimizer.

        ART shuffles with torch's global generator: call `fit` inside :func:`art_hrloss.attacks.seeded` for reproducible
        weights.

        :param x: Images, shape ``(n, *input_shape)``.
        :param y: Class indices ``(n,)`` or ``(n, 1)``, or one-hot labels or probabilities ``(n, M)``.
        :param batch_size: Images per step of the optimizer.
        :param nb_epochs: The number of epochs.
        :param kwargs: ART's `training_mode`, `drop_last`, `scheduler` and `verbose`.
        :raises ValueError: If the labels have no valid form, or images are not finite.
        """
        if np.asarray(x).dtype.kind == "f" and not np.isfinite(x).all():
            raise ValueError(
                "expected images to be finite, but got NaN or infinity: training would make all weights NaN"
            )
        rows = label_rows(y, n=len(x), classes=self.nb_classes)
        super().fit(x, as_array(rows), batch_size=batch_size, nb_epochs=nb_epochs, **kwargs)

    def reduce_labels(self, y: Any) -> Any:
        """
        Return labels in the form that the training loss takes, as ART's method of this name.

        In ART's version a row of whole numbers such as [1, 1, 0] becomes class 0. Here it stays a row of weights.

        :param y: Labels, an array or a tensor of shape ``(n, M)``; other shapes are handled by ART.
        """
        rows = torch.as_tensor(y)
        if rows.ndim != 2 or rows.shape[1] != self.nb_classes:
            return super().reduce_labels(y)
        target = target_for(self._loss, rows if rows.is_floating_point() else rows.float())
        return target if isinstance(y, Tensor) else as_array(target)

    def predict(self, x: np.ndarray, batch_size: int = 128, training_mode: bool = False, **kwargs: Any) -> np.ndarray:
        """
        Return the outputs of the network after postprocessing, float32 of shape ``(n, M)``.

        As in ART, the network stays in evaluation mode afterwards, or in training mode if `training_mode` is True.

        :param x: Images, shape ``(n, *input_shape)``.
        :param batch_size: Images per pass through the network.
        :param training_mode: Whether the network predicts in training mode.
        """
        self._model.train(mode=training_mode)
        predictions: np.ndarray = self._apply_postprocessing(preds=as_array(self._logits(x, batch_size)), fit=False)
        return predictions

    def predict_tensor(self, x: Tensor, batch_size: int = 128) -> Tensor:
        """
        Return the outputs of :meth:`predict` as a tensor on the network's device; the network's modes are restored.

        :param x: Images, shape ``(n, *input_shape)``.
        :param batch_size: Images per pass through the network.
        :return: Shape ``(n, M)``, float32.
        :raises NotImplementedError: If a preprocessing step is not written in torch.

        >>> import torch
        >>> from art_hrloss import HRClassifier, HRLoss
        >>> classifier = HRClassifier(torch.nn.Linear(4, 3), HRLoss(), (4,), 3, device_type="cpu")
        >>> classifier.predict_tensor(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
        """
        with in_mode(self.model, False, backward=False):
            logits = self._logits(x, batch_size)
            if not self.postprocessing_defences:
                return logits
            outputs = self._apply_postprocessing(preds=as_array(logits), fit=False)
        return torch.as_tensor(outputs, device=logits.device)

    def predicted_classes(self, logits: Tensor) -> Tensor:
        """
        Return the predicted classes for logits; postprocessing is applied to the logits first, as in `predict`.

        :param logits: Shape ``(n, M)``.
        :return: int64 of shape ``(n,)``.

        >>> import torch
        >>> from art_hrloss import HRClassifier, HRLoss
        >>> classifier = HRClassifier(torch.nn.Linear(4, 3), HRLoss(), (4,), 3, device_type="cpu")
        >>> classifier.predicted_classes(torch.tensor([[0.0, 2.0, 1.0]]))
        tensor([1])
        """
        if self.postprocessing_defences:
            outputs = self._apply_postprocessing(preds=logits.float().cpu().numpy(), fit=False)
            logits = torch.as_tensor(outputs, device=logits.device)
        return logits.argmax(1)

    def _logits(self, x: Any, batch_size: int) -> Tensor:
        """Return the logits in the current mode of the network, float32 of shape ``(n, M)``, on its device."""
        inputs, _ = self._apply_preprocessing(x, None)
        with torch.no_grad():
            # At least one batch, so that the result for no images still has the shape (0, M).
            batches = [inputs[i : i + batch_size] for i in range(0, max(1, len(inputs)), batch_size)]
            return torch.cat([self._model(self._to_network(batch))[-1] for batch in batches]).float()

    def class_gradient(
        self, x: np.ndarray, label: Any = None, training_mode: bool = False, **kwargs: Any
    ) -> np.ndarray:
        """
        Return the gradients of the logits by the images, as ART does, in the dtype of the images if it is floating.

        :param x: Images, shape ``(n, *input_shape)``.
        :param label: The class of the logit for all images or for each image; None for all classes.
        :param training_mode: Whether the network runs in training mode.
        :return: Shape ``(n, M, *input_shape)``, or ``(n, 1, *input_shape)`` with labels.
        :raises ValueError: If the images are integers that reach the network unchanged.
        """
        # Writable, because ART creates a tensor that shares memory with the array, and torch warns otherwise.
        images = np.require(self._cast(x), requirements="W")
        check_differentiable(images.dtype.kind == "f", images.dtype)
        gradients: np.ndarray = super().class_gradient(images, label, training_mode=training_mode, **kwargs)
        return gradients.astype(x.dtype, copy=False) if x.dtype.kind == "f" else gradients

    def load(self, filename: str, path: str | None = None) -> None:
        """
        Load the weights, and the state of the optimizer if there is one, from the files that `save` wrote.

        :param filename: The name that was passed to `save`.
        :param path: The folder that was passed to `save`; None is ART's data folder.
        :raises FileNotFoundError: If there is no such file.
        :raises RuntimeError: If the weights are those of another network.
        """
        file = os.path.join(config.ART_DATA_PATH if path is None else path, filename)
        self.model.load_state_dict(torch.load(f"{file}.model", map_location=self._device))
        if self._optimizer is not None and os.path.exists(f"{file}.optimizer"):
            self._optimizer.load_state_dict(torch.load(f"{file}.optimizer", map_location=self._device))

    def _apply_preprocessing(self, x: Any, y: Any, fit: bool = False, no_grad: bool = True) -> tuple[Any, Any]:
        """Apply ART's preprocessing to images in the network's dtype; every evaluation of the network calls this."""
        self._check_kind(x)
        images = self._cast(x)
        if isinstance(images, Tensor) and self._preprocessing_is_identity():
            return images.clone(), y  # a copy, because the first layer may change its input in place
        images, labels = super()._apply_preprocessing(images, y, fit=fit, no_grad=no_grad)
        images = self._cast(images)  # a preprocessing step in NumPy may have returned another dtype
        if fit and isinstance(images, np.ndarray):  # ART's fit creates a tensor that shares memory with the array
            images = np.require(images, requirements="W")
        return images, labels

    def _preprocessed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's inputs and the labels; the inputs are differentiable if all steps are in torch."""
        if self.all_framework_preprocessing:
            inputs, targets = self._apply_preprocessing(images, labels, no_grad=not torch.is_grad_enabled())
            return inputs, targets
        inputs, rows = self._apply_preprocessing(as_array(images), as_array(labels))
        return self._to_network(inputs), torch.as_tensor(rows)

    def _check_kind(self, x: Any) -> None:
        if isinstance(x, Tensor) and not self.all_framework_preprocessing:
            raise NotImplementedError(
                "expected x to be a NumPy array, but got a tensor: the classifier has a preprocessing step that is not "
                "written in torch"
            )

    def _preprocessing_is_identity(self) -> bool:
        """Return True if there is no preprocessing, or only ART's default, which subtracts 0 and divides by 1."""
        return all(
            type(step) is StandardisationMeanStdPyTorch and not step.mean.any() and bool((step.std == 1).all())
            for step in self.preprocessing_operations
        )

    def _cast(self, x: Any) -> Any:
        """Return images in the network's dtype; NumPy has no bfloat16, so arrays are float32 for such a network."""
        # Without preprocessing, integers stay integers: the network may scale them itself, or they are token indices.
        kind = "fiub" if self.preprocessing_operations else "f"
        if isinstance(x, Tensor):
            return x.to(self._model.dtype) if x.is_floating_point() or "i" in kind else x
        if not isinstance(x, np.ndarray):
            return x
        dtype = x.dtype.newbyteorder("=")
        if x.dtype.kind in kind:
            dtype = np.dtype({torch.float64: "f8", torch.float16: "f2"}.get(self._model.dtype, "f4"))
        return np.ascontiguousarray(x, dtype=dtype)  # torch rejects foreign byte orders and negative strides

    def _to_network(self, x: np.ndarray | Tensor) -> Tensor:
        """Return images as a tensor on the network's device, in its dtype."""
        # torch.tensor copies an array: torch.from_numpy would warn of a read-only one.
        images: Tensor = self._cast(x if isinstance(x, Tensor) else torch.tensor(self._cast(x)))
        return images.to(self._device)

    def _make_model_wrapper(self, model: Module) -> Network:
        return Network(model)

    def __getstate__(self) -> dict[str, Any]:
        """Return the complete state, with the weights; ART's version writes the weights to another file."""
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state."""
        self.__dict__.update(state)


def check_classifier(classifier: object) -> None:
    """Raise TypeError unless the classifier is a PyTorchClassifier."""
    if not isinstance(classifier, PyTorchClassifier):
        raise TypeError(f"expected classifier to be a PyTorchClassifier, but got {type(classifier).__name__}")


def check_losses(**losses: object) -> None:
    """Raise TypeError unless all losses are modules; `attack_loss` may also be None, for the training loss."""
    for name, loss in losses.items():
        if not isinstance(loss, Module) and (name, loss) != ("attack_loss", None):
            raise TypeError(f"expected {name} to be a torch.nn.Module, but got {type(loss).__name__}")
