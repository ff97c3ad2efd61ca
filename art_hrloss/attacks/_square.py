"""Square attack: score-based black-box attack by random search, vectorised over the images."""

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from art.attacks import evasion
from art.attacks.evasion import square_attack
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from tqdm.auto import trange

from art_hrloss._labels import class_indices
from art_hrloss._network import as_array
from art_hrloss._preconditions import checked_tensor
from art_hrloss.attacks._base import TensorAttack, predicted_classes, to_python
from art_hrloss.attacks._constraints import check_units
from art_hrloss.attacks._losses import MARGIN
from art_hrloss.classifier import as_hr_classifier


def is_for_square(classifier: PyTorchClassifier, norm: float | str) -> bool:
    """
    Return True if the Square attack supports this classifier.

    It needs images of three dimensions and clip_values. For norm 2, where ART's implementation runs, it also needs
    square images with a side of at least 10: smaller images have initial tiles of one pixel, whose perturbation is 0.
    """
    shape = classifier.input_shape
    if len(shape) != 3 or classifier.clip_values is None or float(norm) not in (2.0, math.inf):
        return False
    height, width = shape[1:] if classifier.channels_first else shape[:2]
    # In norm 2 ART's squares have an odd side, and the first one, of 0.8 of the pixels, must be smaller than the image.
    return float(norm) == math.inf or bool(height == width >= 10 and round((0.8 * height * width) ** 0.5) | 1 < height)


class SquareAttack(TensorAttack, evasion.SquareAttack):
    """
    Square attack (Andriushchenko et al., 2020): a score-based black-box attack by random search.

    For the L-infinity norm, each query changes a square at a random position of each image to the bounds of the
    feasible set. The change is kept if it decreases the margin ``z_y - max_(k != y) z_k``. The squares shrink along
    ART's schedule. An image is queried until it is misclassified, at most `max_iter` times after the initial vertical
    stripes. The random numbers come from NumPy's global generator; those of an image depend neither on `batch_size` nor
    on the success for other images. For norm 2, or with an `adv_criterion` or a `loss`, ART's implementation runs.

    >>> import numpy as np, torch
    >>> from art_hrloss import HRClassifier, HRLoss, SquareAttack
    >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> classifier = HRClassifier(network, HRLoss(), (1, 8, 8), 3, clip_values=(0, 1), device_type="cpu")
    >>> attack = SquareAttack(classifier, eps=0.1, max_iter=20, verbose=False)
    >>> attack.generate(np.full((2, 1, 8, 8), 0.5, dtype=np.float32), [0, 1]).shape
    (2, 1, 8, 8)
    """

    attack_params = [*evasion.SquareAttack.attack_params, "patience"]  # noqa: RUF012  # ART's own declaration

    def __init__(self, estimator: PyTorchClassifier, *args: Any, patience: int | None = None, **kwargs: Any) -> None:
        """
        :param estimator: A PyTorchClassifier or a black-box classifier of ART, which predicts logits.
        :param args: ART's parameters: norm, adv_criterion, loss, max_iter, eps, p_init, nb_restarts, batch_size,
               verbose.
        :param patience: The number of queries without a new adversarial example for any image after which a restart
               ends; None for no such limit.
        :raises ValueError: If a parameter is out of its range, or the attack does not support the classifier.
        """
        self.patience: int | None = None
        self._classifier = as_hr_classifier(estimator) if isinstance(estimator, PyTorchClassifier) else None
        super().__init__(estimator, *map(to_python, args), **{name: to_python(value) for name, value in kwargs.items()})
        self.set_params(patience=patience)

    def _attacked(self, x: Any, y: Any, **kwargs: Any) -> Tensor:
        """
        Return the iterates of the smallest margin; images that are already misclassified are unchanged.

        :raises NotImplementedError: If a mask is passed.
        """
        if kwargs.get("mask") is not None:
            raise NotImplementedError("expected no mask, but got one: the Square attack changes all pixels of a square")
        if np.ndim(x) != 4:
            raise ValueError(
                f"expected images of shape (n, *{self.estimator.input_shape}), but got {tuple(np.shape(x))}"
            )
        device = getattr(self.estimator, "device", "cpu")
        images = checked_tensor(self.estimator, x.to(device) if isinstance(x, Tensor) else x)
        image_device = images.device
        predictions = predicted_classes(self.estimator, images, self.batch_size)
        labels = predictions
        if y is not None:
            labels = class_indices(y, n=len(images), classes=self.estimator.nb_classes).to(image_device)
        if self._runs_arts():
            rows = as_array(labels)
            candidates = evasion.SquareAttack.generate(self, as_array(images), rows, **kwargs)
            return torch.from_numpy(candidates).to(image_device)
        adversarial, robust = images.clone(), predictions == labels
        for _ in range(self.nb_restarts):
            if robust.any():
                with nullcontext() if self._classifier is None else self._classifier.attacking():
                    iterates, misclassified = self._attempt(images[robust].to(device), labels[robust].to(device))
                adversarial[robust] = iterates.to(image_device)
                robust[robust.clone()] = ~misclassified.to(image_device)
        return adversarial

    def _attempt(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the final iterates of a random search, and a mask of those that are misclassified."""
        clip_values = [torch.as_tensor(value, device=images.device).float() for value in self.estimator.clip_values]
        low = torch.maximum(images - self.eps, clip_values[0]).flatten(1)
        high = torch.minimum(images + self.eps, clip_values[1]).flatten(1)
        # The search begins at vertical stripes at the bounds: one draw per column and channel.
        rows = 2 if self.estimator.channels_first else 1
        shape = [1 if axis == rows else size for axis, size in enumerate(images.shape)]
        up = torch.from_numpy(np.random.random_sample(shape) < 0.5)  # noqa: NPY002  # ART's generator
        best = torch.where(up.to(images.device).expand_as(images).flatten(1), high, low)
        margins, wrong = self._margins(best.view_as(images), labels)
        result, misclassified = torch.empty_like(best), wrong.clone()
        active, failures = torch.arange(len(images), device=images.device), 0
        for query in trange(self.max_iter, desc="SquareAttack", leave=False, disable=not self.verbose):
            if bool(wrong.any()):
                result[active], failures = best, 0
                tensors = (active, best, low, high, labels, margins)
                active, best, low, high, labels, margins = (tensor[~wrong] for tensor in tensors)
            if not len(active) or failures == self.patience:
                break
            square, up = self._squares(images, active, self._get_percentage_of_elements(query))
            old, lower, upper = (tensor.gather(1, square) for tensor in (best, low, high))
            # A candidate equal to the iterate would waste the query, so it gets the opposite bounds.
            same = (torch.where(up, upper, lower) == old).all(1, keepdim=True)
            new = torch.where(up ^ same, upper, lower)
            # The change is made in place and undone if it is not better: this costs less than a copy of the images.
            candidates, wrong = self._margins(best.scatter_(1, square, new).view(-1, *images.shape[1:]), labels)
            accepted = wrong | (candidates < margins)
            best.scatter_(1, square, torch.where(accepted.unsqueeze(1), new, old))
            margins, misclassified[active] = torch.where(accepted, candidates, margins), wrong
            failures += 1
        result[active] = best
        return result.view_as(images), misclassified

    def _squares(self, images: Tensor, active: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Return a square of `share` of the pixels per active image: flat indices, and a mask of the upper bounds."""
        grid = torch.arange(images[0].numel(), device=images.device).view(images.shape[1:])
        grid = grid if self.estimator.channels_first else grid.permute(2, 0, 1)
        channels, height, width = grid.shape
        side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
        # Drawn for all images, so that the numbers of an image do not depend on the success for other images.
        numbers = np.random.random_sample((2 + channels, len(images)))  # noqa: NPY002
        uniform = torch.from_numpy(numbers).to(images.device)[:, active]
        row, column = (uniform[0] * (height - side + 1)).long(), (uniform[1] * (width - side + 1)).long()
        square = grid[0, row, column].unsqueeze(1) + grid[:, :side, :side].flatten()
        return square, (uniform[2:] < 0.5).T.repeat_interleave(side * side, dim=1)

    def _margins(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the margins and a mask of the misclassified images, both of shape ``(n,)``."""
        if self._classifier is None:
            logits = torch.from_numpy(self.estimator.predict(images.cpu().numpy(), batch_size=self.batch_size))
            return -MARGIN(logits, labels), logits.argmax(1) != labels
        parts = zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True)
        points = [self._classifier.evaluate(*part, loss=MARGIN, gradient=False) for part in parts]
        losses, logits = (torch.cat(values) for values in zip(*((p.losses, p.logits) for p in points), strict=True))
        return -losses, self._classifier.predicted_classes(logits) != labels

    def _runs_arts(self) -> bool:
        """Return True if ART's implementation runs, because the parameters are not those of this implementation."""
        # ART's default criterion is a lambda, which is recognised by its module.
        is_default = getattr(self.adv_criterion, "__module__", None) == square_attack.__name__
        return float(self.norm) == 2 or not is_default or self.loss != self._get_logits_diff

    def _check_params(self) -> None:
        super()._check_params()
        check_units(self.eps, self.norm, self.estimator.clip_values)
        if not is_for_square(self.estimator, self.norm):
            raise ValueError(
                "expected images of three dimensions, clip_values, and norm inf, or norm 2 and square images of side "
                f"10 or more, but got {self.estimator.input_shape}, {self.estimator.clip_values}, norm {self.norm}"
            )
        if self.patience is not None and (self.patience < 1 or self._runs_arts()):
            raise ValueError(
                "expected patience to be None or at least 1, and None with norm 2, an adv_criterion or a loss, but got "
                f"{self.patience}"
            )
