"""ART's Auto-PGD, without what it computes twice; ``_gradient`` says when its images are ART's."""

import math
from typing import Any

import numpy as np
import torch
from art.attacks import evasion
from art.attacks.evasion import auto_projected_gradient_descent
from art.utils import check_and_transform_label_format, get_labels_np_array, projection, random_sphere

from art_hrloss.attacks._climb import Climb, Place
from art_hrloss.attacks._lean import is_lean
from art_hrloss.attacks._steps import Array, Images, Room
from art_hrloss.classifier import HRClassifier


class AutoProjectedGradientDescent(evasion.AutoProjectedGradientDescent):
    """
    ART's AutoProjectedGradientDescent (Croce and Hein, 2020).

    ART asks for the gradient at a point and for the loss at the next, and so sends every point through the network
    twice; here both come from one pass, and with them the prediction that tells whether an attempt has succeeded.
    """

    def generate(self, x: Array, y: Array | None = None, **kwargs: Any) -> Images:
        """
        As ART's.

        :param x: Images, shape ``(n, *input_shape)``.
        :param y: Class indices or one-hot labels; the targets if targeted. By default the predictions.
        :param kwargs: `mask`: where a step may change an image, in a shape that broadcasts with it.
        :return: Adversarial images, float32.
        """
        classifier = self.estimator
        if not is_lean(self, x) or classifier.postprocessing_defences or (y is None and self.targeted):
            inherited: Images = super().generate(x, y, **kwargs)
            return inherited
        if y is None:
            labels = get_labels_np_array(classifier.predict(x, batch_size=self.batch_size)).astype(int)
        else:
            labels = check_and_transform_label_format(y, nb_classes=classifier.nb_classes)
        adversarial = x.astype(np.float32)
        for _ in self._bar("restart", max(1, self.nb_random_init)):
            standing = (classifier.predict(adversarial).argmax(1) != labels.argmax(1)) == self.targeted
            if not standing.any():
                break
            start = self._start(adversarial[standing], x[standing])
            adversarial[standing] = self._restarted(start, x[standing], labels[standing], kwargs.get("mask"))
        return adversarial

    def _bar(self, name: str, length: int) -> Any:
        return auto_projected_gradient_descent.trange(
            length, desc=f"AutoPGD - {name}", leave=name == "restart", disable=not self.verbose
        )

    def _start(self, points: Images, images: Array) -> Images:
        """A random point around each of `points`, within the ball around the image."""
        noise = random_sphere(len(points), math.prod(points.shape[1:]), self.eps, self.norm)
        points = points + noise.reshape(points.shape).astype(np.float32)
        if self.estimator.clip_values is not None:
            points = np.clip(points, *self.estimator.clip_values)
        inside: Array = images + projection(points - images, self.eps, self.norm)
        return inside.astype(np.float32)

    def _restarted(self, start: Images, images: Array, labels: Array, mask: Array | None) -> Images:
        """One attempt at each image: where it ended if that succeeded, and otherwise, as in ART, where it began."""
        result = start.copy()
        for batch in self._bar("batch", math.ceil(len(start) / self.batch_size)):
            part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            last, logits = self._climb(start[part], images[part], labels[part], mask)
            success = (logits.argmax(1) == labels[part].argmax(1)) == self.targeted
            result[part][success] = last[success]
        return result

    def _climb(self, start: Images, images: Array, labels: Array, mask: Array | None) -> tuple[Images, Images]:
        """The climb of one batch from `start`: the images where it ends, and their logits."""
        classifier: HRClassifier = self.estimator
        origin = torch.from_numpy(images.astype(np.float32)).to(classifier.device)
        room, checked = Room.around(self, origin, float(self.eps)), classifier.attack_labels(labels, len(labels))
        free = None if mask is None else torch.from_numpy(mask.astype(np.float32)).to(classifier.device)
        with classifier.attacking():
            points = torch.from_numpy(start).to(classifier.device)
            point = classifier.evaluate(points, checked)
            climb = Climb(
                Place(points, origin, point.losses, point.logits, point.slope),
                step=self.eps_step,
                max_iter=self.max_iter,
                norm=self.norm,
                targeted=self.targeted,
            )
            for k in self._bar("iteration", self.max_iter):
                points = climb.next_points(room, free)
                point = classifier.evaluate(points, checked, gradient=k + 1 < self.max_iter)
                gradient = climb.here.gradient if point.gradient is None else point.gradient  # the last is not used
                there = Place(points, climb.here.points, point.losses, point.logits, gradient)
                if k > 0 and bool((there.losses == 0).all()):  # as ART, to which this is the end of a cross-entropy
                    climb.here = there
                    break
                climb.go(there)
        return climb.here.points.cpu().numpy(), climb.here.logits.cpu().numpy()
