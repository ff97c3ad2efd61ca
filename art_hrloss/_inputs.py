"""ART's PyTorchClassifier for images of any real dtype, and without files beside its pickles."""

from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from torch import Tensor


class AnyDtypeClassifier(PyTorchClassifier):
    """
    A PyTorchClassifier that takes images of any real dtype, in the network's precision.

    Its pickle needs no file beside it.
    """

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

    def __getstate__(self) -> dict[str, Any]:
        """The state with the bare network in place of ART's wrapper, whose class is local and cannot be pickled."""
        state = self.__dict__.copy()
        del state["_model_wrapper"]
        return {**state, "_model": self.model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore, with a wrapper made anew."""
        self.__dict__.update(state)
        self._model = self._make_model_wrapper(state["_model"])
