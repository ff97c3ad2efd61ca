"""
Attempt after attempt on what still stands, no misclassified iterate being lost.

ART's own iterative attacks return the last iterate, and lose an earlier one that was already misclassified; here every
iterate that the network is asked about is looked at, and where the last one is right again, the first misclassified
one is returned.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from art_hrloss._context import modes_kept
from art_hrloss.attacks._constraints import Images, Labels, as_indices, predicted
from art_hrloss.attacks._views import Normalised
from art_hrloss.classifier import Point, shared_options


class KeepsTheFirst:
    """Restarts on what still stands, batch by batch, of an attack of ART's that makes one attempt at one batch."""

    def _with_restarts(self, x: Images, y: npt.NDArray[Any] | None, restarts: int, mask: Any = None) -> Images:
        """
        :param x: Images, shape ``(n, *input_shape)``.
        :param y: True labels, as indices or one-hot; without them the predictions are taken.
        :param restarts: Attempts, each from another random start.
        :param mask: Where images may change, shape ``(n, *input_shape)``, or one that broadcasts to that of an image.
        :return: For every image a misclassified iterate, or what ART returns where there is none.
        :raises ValueError: If the labels are not as many as the images, or no labels.
        """
        attack: Any = self
        view, size = attack._estimator, attack.batch_size
        images = np.asarray(x).astype(np.float32)
        adversarial = images.copy()
        with modes_kept(view.model):
            labels = classes = predicted(view, images, size)
            if y is not None:
                labels = as_indices(y, view.nb_classes)
            if len(labels) != len(images):
                raise ValueError(f"expected as many labels as images, but got {len(labels)} and {len(images)}")
            standing = classes == labels
            for _ in range(restarts):
                indices = np.flatnonzero(standing)
                for batch in np.split(indices, range(size, len(indices), size)) if len(indices) else []:
                    part = mask[batch] if np.ndim(mask) == images.ndim else mask
                    adversarial[batch], broken = self._watched_attempt(images[batch], labels[batch], part)
                    standing[batch] = ~broken
        return adversarial

    def _watched_attempt(self, images: Images, labels: Labels, mask: Any) -> tuple[Images, npt.NDArray[np.bool_]]:
        """One attempt at one batch, all of it classified rightly: what it made, and which of that is misclassified."""
        attack: Any = self
        view = attack._estimator
        watched = _Watched(
            view.model, attack_loss=view.attack_loss, images=images, labels=labels, **shared_options(view)
        )
        attack._estimator = watched
        try:
            last, outputs = self._climbed(images, labels, mask)
        finally:
            attack._estimator = view
        wrong = outputs.argmax(1) != labels
        # Where both went wrong the last iterate is as good; where neither did it is all there is.
        earlier = watched.found & ~wrong
        return np.where(per_image(earlier, last), watched.adversarial, last), watched.found | wrong

    def _climbed(self, images: Images, labels: Labels, mask: Any) -> tuple[Images, npt.NDArray[np.float32]]:
        """Where ART's attack ends on one batch, and what the network says of it."""
        raise NotImplementedError


class _Watched(Normalised):
    """A view that keeps, of every example of a batch, the first image on which the network went wrong."""

    def __init__(self, *args: Any, images: Images, labels: Labels, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.labels, self.adversarial, self.found = labels, images.copy(), np.zeros(len(images), dtype=bool)

    def evaluate(self, x: Tensor, labels: Tensor, *, gradient: bool = True) -> Point:
        """As inherited, looking at every point on the way."""
        point = super().evaluate(x, labels, gradient=gradient)
        first = (point.logits.argmax(1).cpu().numpy() != self.labels) & ~self.found
        if first.any():
            self.adversarial[first] = x.detach().cpu().numpy()[first]
            self.found |= first
        return point


def per_image(flags: npt.NDArray[np.bool_], images: Images) -> npt.NDArray[np.bool_]:
    """One flag per image in a shape that broadcasts with the images."""
    return flags.reshape(-1, *(1,) * (images.ndim - 1))
