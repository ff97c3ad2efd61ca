"""ART's PyTorchClassifier with a separate loss for attacks, and one method through which they evaluate the network."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.nn import Module

from art_hrloss._base_classifier import AnyInputClassifier, check_classifier, check_losses
from art_hrloss._context import in_mode
from art_hrloss._labels import check_no_image_ignored, label_rows, reduced, target_for
from art_hrloss._network import Observer, Point, as_array, check_differentiable, input_gradient


class HRClassifier(AnyInputClassifier):
    """
    A PyTorchClassifier that trains with one loss and is attacked along a per-example loss.

    The HR loss of a batch couples its examples, and the paper attacks with the HR loss of one example. Therefore
    `loss_gradient` and `compute_loss`, which ART's attacks call, use `attack_loss` for each example separately: an
    adversarial image does not depend on the batch size or on the order of the images. `fit`, and all trainers of ART,
    use `loss`.

    The attacks of :mod:`art_hrloss.attacks`, and ART's attacks along the loss of the classifier, evaluate the network
    through :meth:`evaluate`. Override it in a subclass to change their loss or their gradients; register an observer
    with :meth:`observed_by`. ART's attacks with class gradients or an objective of their own do not call it.

    Beyond PyTorchClassifier: labels may have any usual form and are checked; images may have any real dtype, networks
    any floating precision; attacks do not change parameter gradients or modes; `load` reads the files of `save`.

    >>> import numpy as np, torch
    >>> from art_hrloss import HRClassifier, HRLoss
    >>> classifier = HRClassifier(torch.nn.Linear(4, 3), HRLoss(), (4,), 3, clip_values=(0, 1), device_type="cpu")
    >>> images = np.zeros((2, 4), dtype=np.float32)
    >>> classifier.loss_gradient(images, [0, 2]).shape, classifier.compute_loss(images, [0, 2]).shape
    ((2, 4), (2,))
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
        All parameters except `attack_loss` are those of PyTorchClassifier; `device_type` is "gpu" or "cpu".

        :param model: The network; it maps images ``(n, *input_shape)`` to logits ``(n, nb_classes)``.
        :param loss: The training loss, a module such as :class:`~art_hrloss.HRLoss`.
        :param clip_values: The least and the greatest value of a pixel, for attacks.
        :param preprocessing: (mean, standard deviation) to normalise images before the network. With None, integer
               images or tokens reach the network in their own dtype.
        :param attack_loss: The loss that attacks maximise: a loss with a `reduction`, of which a copy with reduction
               "none" is used, or any module that maps (logits, labels) to one value per example, shape ``(n,)``. The
               default is the per-example form of `loss`.
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
        """The loss that attacks maximise; it is computed per example, independent of its reduction."""
        loss: Module = self._loss if self._attack_loss is None else self._attack_loss
        return loss

    def get_params(self) -> dict[str, Any]:
        """Return the parameters by name; `attack_loss` is None if attacks use the training loss."""
        return {**super().get_params(), "attack_loss": self._attack_loss}

    def evaluate(self, x: Tensor, labels: Tensor, *, loss: Module | None = None, gradient: bool = True) -> Point:
        """
        Return the attack losses, the logits and the gradients from one forward and one backward pass.

        :param x: Images, shape ``(n, *input_shape)``; they are not modified.
        :param labels: The result of :meth:`attack_labels`, for the same loss.
        :param loss: A loss to use instead of `attack_loss`.
        :param gradient: Whether to compute the gradient; otherwise it is None.
        :return: A named tuple of `losses`, shape ``(n,)``, `logits`, shape ``(n, M)``, and `gradient`, as `x`.
        :raises ValueError: If no gradient flows to the images, or the loss does not return one value per example.

        >>> import torch
        >>> from art_hrloss import HRClassifier, HRLoss
        >>> classifier = HRClassifier(torch.nn.Linear(4, 3), HRLoss(), (4,), 3, device_type="cpu")
        >>> with classifier.attacking():
        ...     point = classifier.evaluate(torch.zeros(2, 4), classifier.attack_labels([0, 2], 2))
        >>> point.losses.shape, point.logits.shape, point.gradient.shape
        (torch.Size([2]), torch.Size([2, 3]), torch.Size([2, 4]))
        """
        images = self._to_network(x).detach()
        check_differentiable(images.is_floating_point() or not gradient, images.dtype)
        with torch.inference_mode(False), torch.set_grad_enabled(gradient):  # independent of the caller's mode
            # Autograd does not accept tensors that were created in inference mode, so those are copied.
            leaf, rows = (part.clone() if part.is_inference() else part for part in (images, labels))
            leaf.requires_grad_(gradient and self.all_framework_preprocessing)
            inputs, targets = self._preprocessed(leaf, rows)
            if not self.all_framework_preprocessing:  # the graph can only begin after a preprocessing step in NumPy
                leaf = inputs.requires_grad_(gradient)
            logits = self._model(inputs)[-1]
            losses = reduced(self.attack_loss if loss is None else loss, logits, targets, "none")
            # Each loss depends on its own image only, so the gradient of the sum holds the gradient of every loss.
            slope = input_gradient(losses, leaf) if gradient else None
        if slope is not None and not self.all_framework_preprocessing:  # each step estimates its own gradient
            slope = torch.as_tensor(self._apply_preprocessing_gradient(as_array(images), as_array(slope))).to(leaf)
        point = Point(losses.detach(), logits.detach(), slope)
        for observer in self._observers:
            observer(x, labels, point)
        return point

    def attacking(self) -> AbstractContextManager[None]:
        """Put the network in evaluation mode for calls of :meth:`evaluate`, and restore its modes at the end."""
        return in_mode(self.model, False, backward=True)

    @contextmanager
    def observed_by(self, observer: Observer) -> Iterator[None]:
        """
        Call a function after every evaluation of the network by an attack, of ART or of this package.

        :param observer: A function of the images ``(n, *input_shape)``, which the attack may overwrite later, their
               labels, and the result of :meth:`evaluate`.

        >>> import numpy as np, torch
        >>> from art_hrloss import FastGradientMethod, HRClassifier, HRLoss
        >>> classifier, losses = HRClassifier(torch.nn.Linear(4, 3), HRLoss(), (4,), 3, device_type="cpu"), []
        >>> with classifier.observed_by(lambda images, labels, point: losses.append(point.losses.shape)):
        ...     adversarial = FastGradientMethod(classifier, eps=0.1).generate(np.zeros((2, 4)), [0, 2])
        >>> losses
        [torch.Size([2])]
        """
        self._observers.append(observer)
        try:
            yield
        finally:
            self._observers.remove(observer)

    def attack_labels(self, y: Any, n: int, loss: Module | None = None) -> Tensor:
        """
        Return checked labels in the form that :meth:`evaluate` takes, for all steps of an attack.

        :param y: Class indices ``(n,)`` or ``(n, 1)``, or one-hot labels or probabilities ``(n, M)``.
        :param n: The number of images.
        :param loss: A loss to use instead of `attack_loss`.
        :return: A tensor on the network's device, in the form that the loss takes, or rows ``(n, M)`` if the classifier
                 has preprocessing steps, which may need them.
        :raises ValueError: If the labels are invalid, or the loss ignores some of them (`ignore_index`, class weights
                of 0).
        """
        loss = self.attack_loss if loss is None else loss
        dtype = torch.float64 if self._model.dtype == torch.float64 else torch.float32  # the dtype of the logits
        rows = label_rows(y, n=n, classes=self.nb_classes).to(self._device, dtype)
        check_no_image_ignored(loss, rows)
        return target_for(loss, rows) if self._preprocessing_is_identity() else rows

    def loss_gradient(self, x: Any, y: Any, training_mode: bool = False, **kwargs: Any) -> Any:
        """
        Return the gradient of each image's attack loss by the image.

        :param x: Images, shape ``(n, *input_shape)``, an array of any real dtype or a tensor.
        :param y: Labels; see :meth:`attack_labels`.
        :param training_mode: Whether the network runs in training mode, with dropout and batch statistics active.
        :return: An array or tensor, like `x`, of the shape of `x`, and of its dtype if that is floating.
        :raises ValueError: If the labels are invalid, or the attack loss does not return one value per example.
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
        Return the attack loss in evaluation mode.

        The network is evaluated in batches, and the reduction is taken over all examples together: the result does not
        depend on the batch size. It is differentiable if `x` is a tensor that requires gradients.

        :param x: Images, shape ``(n, *input_shape)``, of any real dtype.
        :param y: Labels; see :meth:`attack_labels`.
        :param reduction: "none", "mean" or "sum"; also "batch" if the attack loss is an HRLoss.
        :param batch_size: Images per pass through the network.
        :return: An array or tensor, like `x`: shape ``(n,)`` for "none", otherwise a scalar. In nats for HRLoss.
        :raises ValueError: If the labels or the reduction are invalid.
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
            if reduction != "none":  # from the logits of all examples, because the HR loss is not a mean of batches
                logits = torch.cat([point.logits for point in points])
                loss = reduced(self.attack_loss, logits, torch.cat(rows), reduction)
        return loss if isinstance(x, Tensor) else as_array(loss)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without observers, which are functions and may not be picklable."""
        return {**super().__getstate__(), "_observers": []}

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, attack_loss={self._attack_loss})"


def attack_view(classifier: PyTorchClassifier, loss: Module) -> HRClassifier:
    """
    Return a second classifier on the same network that is attacked along another loss.

    Both share the network, training loss, optimizer, clip values and preprocessing, so training one trains both. One
    trained classifier can thus be attacked along cross-entropy, the HR loss, or any other loss.

    :param classifier: A PyTorchClassifier or HRClassifier; it is not modified.
    :param loss: The loss that attacks maximise, as `attack_loss` of :class:`HRClassifier`.
    :raises TypeError: If `classifier` is not a PyTorchClassifier, or a subclass with another `loss_gradient` or
            `compute_loss`, such as randomized smoothing, which an attack on the view would bypass; or if `loss` is not
            a module.

    >>> import torch
    >>> from art.estimators.classification import PyTorchClassifier
    >>> from art_hrloss import HRLoss, attack_view
    >>> network = torch.nn.Linear(4, 3)
    >>> trained = PyTorchClassifier(network, torch.nn.CrossEntropyLoss(), (4,), 3, device_type="cpu")
    >>> attack_view(trained, HRLoss()).model is network
    True
    """
    _check_methods(classifier)
    check_losses(loss=loss)
    if not isinstance(classifier, HRClassifier):
        excluded = {"model", "use_amp", "opt_level", "loss_scale"}  # apex has already prepared the shared network
        names = [name for name in PyTorchClassifier.estimator_params if name not in excluded]
        return HRClassifier(classifier.model, attack_loss=loss, **{name: getattr(classifier, name) for name in names})
    view = copy.copy(classifier)  # a copy keeps the class, which may be a subclass that overrides `evaluate`
    view.set_params(attack_loss=loss)
    return view


def as_hr_classifier(classifier: PyTorchClassifier) -> HRClassifier:
    """Return the classifier itself if it is an HRClassifier, otherwise its :func:`attack_view` along its own loss."""
    _check_methods(classifier)
    return classifier if isinstance(classifier, HRClassifier) else attack_view(classifier, classifier.loss)


def _check_methods(classifier: PyTorchClassifier) -> None:
    """Raise TypeError if a subclass overrides methods that attacks, which call HRClassifier.evaluate, would bypass."""
    check_classifier(classifier)
    for name in ("loss_gradient", "compute_loss"):
        method = getattr(getattr(classifier, name), "__func__", None)
        if method not in (getattr(PyTorchClassifier, name), getattr(HRClassifier, name)):
            raise TypeError(
                f"expected a classifier with ART's or HRClassifier's {name}, but got {type(classifier).__name__}, with "
                "an override that attacks would bypass: override HRClassifier.evaluate, which they call"
            )
