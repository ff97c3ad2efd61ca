"""ART's PyTorchClassifier for networks, images and labels of any form, checked outputs, and single-file pickles."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from art import config
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from torch import Tensor
from torch.nn import CrossEntropyLoss, Module, Sequential

from art_hrloss._context import in_mode
from art_hrloss._labels import BINARY_LOSSES, INDEX_LOSSES, label_rows, target_for


class Point(NamedTuple):
    """
    An evaluation of a network at the images of a batch; nothing in it requires gradients.

    Losses ``(n,)``, in nats for the HR loss and cross-entropy; logits ``(n, M)``, float32 or float64; and the gradient
    of each image's own loss by the image, ``(n, *input_shape)``, in the network's dtype, or None.
    """

    losses: Tensor
    logits: Tensor
    gradient: Tensor | None

    @property
    def slope(self) -> Tensor:
        """The gradient, of an evaluation that computed it."""
        assert self.gradient is not None
        return self.gradient


Observer = Callable[[Tensor, Tensor, Point], None]  # takes images, labels as the loss takes them, and the result


class Network(Module):
    """
    ART's wrapper of a network: casts images to its dtype, half-precision logits to float32, checks the output's type.

    ART's own is a local class, which cannot be pickled, and hands on whatever dtype and type comes.
    """

    def __init__(self, model: Module) -> None:
        super().__init__()
        self._model = model

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of a Sequential's layers, or the one output of another network; the last is the logits."""
        if x.is_floating_point():
            x = x.to(self.dtype)
        if x.is_leaf and x.requires_grad:
            x = x.clone()  # a network may begin with a step in place
        outputs = []
        # A Sequential with a forward of its own may do more than to call its layers in turn.
        in_turn = isinstance(self._model, Sequential) and type(self._model).forward is Sequential.forward
        for layer in self._model.children() if in_turn else (self._model,):
            x = layer(x)
            outputs.append(x)
        if not isinstance(x, Tensor):
            raise TypeError(
                f"expected the network to return a tensor of logits, but got a {type(x).__name__}: wrap it in a module "
                "whose forward picks the logits out"
            )
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        outputs[-1] = x[:, None] if x.ndim == 1 else x  # one output per image is a column, as in ART's predict
        return outputs

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the network's parameters; float32 if it has none."""
        parameters = (parameter.dtype for parameter in self._model.parameters() if parameter.is_floating_point())
        return next(parameters, torch.float32)

    @property
    def get_layers(self) -> list[str]:
        """The names of the network's layers, as ART lists them."""
        return [name for name, _ in self._model.named_children()]


class AnyInputClassifier(PyTorchClassifier):
    """A PyTorchClassifier that takes images of any real dtype, in the network's precision, and labels in any form."""

    _model: Network

    def set_params(self, **kwargs: Any) -> None:
        """Set parameters by name, any of `estimator_params`, as ART does; a new `loss` gets labels in its own form."""
        check_losses(**{name: kwargs[name] for name in ("loss", "attack_loss") if name in kwargs})
        if "model" in kwargs:
            self._model = self._make_model_wrapper(kwargs.pop("model")).to(self.device)
        super().set_params(**kwargs)
        if "loss" in kwargs:  # ART's adversarial trainers read these
            self._int_labels = isinstance(self._loss, INDEX_LOSSES)
            self._reduce_labels = self._int_labels or isinstance(self._loss, BINARY_LOSSES)
            self._probability_labels = isinstance(self._loss, CrossEntropyLoss)

    def fit(self, x: Any, y: Any, batch_size: int = 128, nb_epochs: int = 10, **kwargs: Any) -> None:
        """
        Train the network with `loss` and the optimizer.

        ART shuffles by torch's global generator: train within :func:`art_hrloss.attacks.seeded` for the same weights.

        :param x: Images, shape ``(n, *input_shape)``.
        :param y: Class indices, one-hot labels or probabilities; see :func:`art_hrloss._labels.parse_labels`.
        :param kwargs: ART's: `training_mode`, `drop_last`, `scheduler`, `verbose`.
        :raises ValueError: If the labels fit no form (ART takes label -1 for the last class) or images are not finite.
        """
        if np.asarray(x).dtype.kind == "f" and not np.isfinite(x).all():
            raise ValueError("expected images to be finite, but got NaN or infinity, which would spoil the weights")
        rows = label_rows(y, n=len(x), classes=self.nb_classes)
        super().fit(x, as_array(rows), batch_size=batch_size, nb_epochs=nb_epochs, **kwargs)

    def reduce_labels(self, y: Any) -> Any:
        """Return labels as the training loss takes them: ART's, where rows such as [1, 1, 0] are not class 0."""
        rows = torch.as_tensor(y)
        if rows.ndim != 2 or rows.shape[1] != self.nb_classes:
            return super().reduce_labels(y)
        target = target_for(self._loss, rows if rows.is_floating_point() else rows.float())
        return target if isinstance(y, Tensor) else as_array(target)

    def predict(self, x: np.ndarray, batch_size: int = 128, training_mode: bool = False, **kwargs: Any) -> np.ndarray:
        """Return what the network outputs, float32 of shape ``(n, M)``; as ART's, which also leaves it in that mode."""
        self._model.train(mode=training_mode)
        predictions: np.ndarray = self._apply_postprocessing(preds=as_array(self._logits(x, batch_size)), fit=False)
        return predictions

    def predict_tensor(self, x: Tensor, batch_size: int = 128) -> Tensor:
        """Return what :meth:`predict` does in evaluation mode, on the network's device; its modes are restored."""
        with in_mode(self.model, False, backward=False):
            logits = self._logits(x, batch_size)
            if not self.postprocessing_defences:
                return logits
            outputs = self._apply_postprocessing(preds=as_array(logits), fit=False)
        return torch.as_tensor(outputs, device=logits.device)

    def predicted_classes(self, logits: Tensor) -> Tensor:
        """Return the classes that `predict` would decide for, int64 of shape ``(n,)``, given logits ``(n, M)``."""
        if self.postprocessing_defences:
            outputs = self._apply_postprocessing(preds=logits.float().cpu().numpy(), fit=False)
            logits = torch.as_tensor(outputs, device=logits.device)
        return logits.argmax(1)

    def _logits(self, x: Any, batch_size: int) -> Tensor:
        """Return the logits in the network's present mode, float32 of shape ``(n, M)``, on its device."""
        inputs, _ = self._apply_preprocessing(x, None)
        with torch.no_grad():
            batches = [inputs[i : i + batch_size] for i in range(0, max(1, len(inputs)), batch_size)]
            return torch.cat([self._model(self._to_network(batch))[-1] for batch in batches]).float()

    def class_gradient(
        self, x: np.ndarray, label: Any = None, training_mode: bool = False, **kwargs: Any
    ) -> np.ndarray:
        """Return the gradients of the logits by the images, as ART's, in the images' dtype if that is floating."""
        images = np.require(self._cast(x), requirements="W")  # ART makes a tensor of them that shares their memory
        check_differentiable(images.dtype.kind == "f", images.dtype)
        gradients: np.ndarray = super().class_gradient(images, label, training_mode=training_mode, **kwargs)
        return gradients.astype(x.dtype, copy=False) if x.dtype.kind == "f" else gradients

    def load(self, filename: str, path: str | None = None) -> None:
        """Load the weights, and the optimizer's state, that `save` wrote with the same arguments."""
        file = os.path.join(config.ART_DATA_PATH if path is None else path, filename)
        self.model.load_state_dict(torch.load(f"{file}.model", map_location=self._device))
        if self._optimizer is not None and os.path.exists(f"{file}.optimizer"):
            self._optimizer.load_state_dict(torch.load(f"{file}.optimizer", map_location=self._device))

    def _apply_preprocessing(self, x: Any, y: Any, fit: bool = False, no_grad: bool = True) -> tuple[Any, Any]:
        """Apply ART's preprocessing to images in the network's dtype; every way into the network leads through it."""
        self._check_kind(x)
        images = self._cast(x)
        if isinstance(images, Tensor) and self._preprocessing_is_identity():
            return images.clone(), y  # a copy, because a network may begin with a step in place
        images, labels = super()._apply_preprocessing(images, y, fit=fit, no_grad=no_grad)
        images = self._cast(images)  # a step in NumPy may have returned another dtype
        if fit and isinstance(images, np.ndarray):  # ART makes a tensor of them that shares their memory
            images = np.require(images, requirements="W")
        return images, labels

    def _preprocessed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's inputs, and labels, differentiable unless a step is written in NumPy."""
        if self.all_framework_preprocessing:
            inputs, targets = self._apply_preprocessing(images, labels, no_grad=not torch.is_grad_enabled())
            return inputs, targets
        inputs, rows = self._apply_preprocessing(as_array(images), as_array(labels))
        return self._to_network(inputs), torch.as_tensor(rows)

    def _check_kind(self, x: Any) -> None:
        if isinstance(x, Tensor) and not self.all_framework_preprocessing:
            raise NotImplementedError(
                "expected x to be a NumPy array, because a preprocessing step is not written in torch, but got a tensor"
            )

    def _preprocessing_is_identity(self) -> bool:
        """Return whether preprocessing is none, or ART's default: subtract 0 and divide by 1."""
        return all(
            type(step) is StandardisationMeanStdPyTorch and not step.mean.any() and bool((step.std == 1).all())
            for step in self.preprocessing_operations
        )

    def _cast(self, x: Any) -> Any:
        """Return images of a real dtype in the network's dtype; NumPy's float32 where that is bfloat16."""
        # Without any preprocessing integers are unchanged: the network may scale them itself, or look tokens up.
        kind = "fiub" if self.preprocessing_operations else "f"
        if isinstance(x, Tensor):
            return x.to(self._model.dtype) if x.is_floating_point() or "i" in kind else x
        if not isinstance(x, np.ndarray):
            return x
        dtype = x.dtype.newbyteorder("=")
        if x.dtype.kind in kind:
            dtype = np.dtype({torch.float64: "f8", torch.float16: "f2"}.get(self._model.dtype, "f4"))
        return np.ascontiguousarray(x, dtype=dtype)  # torch takes no other byte order and no negative strides

    def _to_network(self, x: np.ndarray | Tensor) -> Tensor:
        """Return images as a tensor on the network's device, in its dtype; arrays are copied: they may be read-only."""
        images: Tensor = self._cast(x if isinstance(x, Tensor) else torch.tensor(self._cast(x)))
        return images.to(self._device)

    def _make_model_wrapper(self, model: Module) -> Network:
        return Network(model)

    def __getstate__(self) -> dict[str, Any]:
        """Return the whole state: ART's own writes the weights to another file."""
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state."""
        self.__dict__.update(state)


def check_classifier(classifier: object) -> None:
    """Raise unless a classifier is one of ART's for PyTorch."""
    if not isinstance(classifier, PyTorchClassifier):
        raise TypeError(f"expected classifier to be a PyTorchClassifier, but got {type(classifier).__name__}")


def check_losses(**losses: object) -> None:
    """Raise unless the losses of these names are modules; only `attack_loss` may be None, and then follows `loss`."""
    for name, loss in losses.items():
        if not isinstance(loss, Module) and (name, loss) != ("attack_loss", None):
            raise TypeError(f"expected {name} to be a torch.nn.Module, but got {type(loss).__name__}")


def check_differentiable(floating: bool, dtype: object) -> None:
    """Raise unless images are floating-point numbers where their gradient is asked for."""
    if not floating:
        raise ValueError(
            f"expected floating-point images, but got {dtype}: with preprocessing=None they reach the network "
            "unchanged, and integers have no gradient"
        )


def input_gradient(losses: Tensor, images: Tensor) -> Tensor:
    """Return the gradient of the summed losses by the images; raise where the network lets none through."""
    gradient = torch.autograd.grad(losses.sum(), images, allow_unused=True)[0] if losses.requires_grad else None
    if gradient is None:
        raise ValueError(
            "expected a network that is differentiable by its images, but got one through which no gradient flows: "
            "attack it by SquareAttack, or give it a differentiable stand-in for the step without gradient (BPDA)"
        )
    return gradient


def as_array(values: Tensor) -> np.ndarray:
    """Return a tensor as an array; NumPy has no bfloat16."""
    values = values.detach().cpu()
    array: np.ndarray = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return array
