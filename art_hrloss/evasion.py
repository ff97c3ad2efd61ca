"""
ART's gradient attacks, without what they compute twice: the same images, at the same seeds.

Each is a subclass of ART's own, made with its parameters and taken wherever that is. Against an
:class:`~art_hrloss.HRClassifier`, a batch goes to the device once, each point through the network once, and nothing is
computed only to be logged. Against any other, and wherever :func:`_is_lean` says no, they are ART's as inherited.

The images are ART's bit for bit, but for rounding in three cases: finite norms of FastGradientMethod and
AutoProjectedGradientDescent, which NumPy sums in another order; sizes as float64 arrays in FastGradientMethod; and
AutoProjectedGradientDescent in batches of more than 128, which ART cuts up for the losses. Of a network that is random
even in evaluation mode, Auto-PGD sees other draws: ART's sees two of each point.
"""

import logging
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from art.attacks import evasion
from art.attacks.evasion import auto_projected_gradient_descent, fast_gradient
from art.attacks.evasion.projected_gradient_descent import projected_gradient_descent_pytorch
from art.utils import check_and_transform_label_format, get_labels_np_array, projection, random_sphere
from torch import Tensor

from art_hrloss.climb import Climb, Place
from art_hrloss.estimator import HRClassifier, Point
from art_hrloss.steps import (
    Array,
    Room,
    Size,
    ascent,
    mask_of_batch,
    of_batch,
    over_norm,
    times,
    usable,
    warn_of_nan,
)

Images = npt.NDArray[np.float32]


class FastGradientMethod(evasion.FastGradientMethod):
    """ART's FastGradientMethod (Goodfellow et al., 2015)."""

    def _compute(
        self,
        x: Array,
        x_init: Array,
        y: Array,
        mask: Array | None,
        eps: Size,
        eps_step: Size,
        project: bool,
        random_init: bool,
        *others: Any,
        **options: Any,
    ) -> Images:
        """One attempt at all images; labels, the choice among attempts and the minimal step are as inherited."""
        if others or options or not project or not _is_lean(self, x):
            inherited: Images = super()._compute(
                x, x_init, y, mask, eps, eps_step, project, random_init, *others, **options
            )
            return inherited
        points = torch.from_numpy(x.astype(np.float32))
        # The difference of the two is in the precision that NumPy gives to it, and so is its projection.
        origin = torch.from_numpy(x_init.astype(np.result_type(np.float32, x_init.dtype)))
        if random_init:
            points = _room(self, points, eps).random_point(mask_of_batch(mask, slice(None), points))
        for start in range(0, len(x), self.batch_size):
            part = slice(start, start + self.batch_size)
            room = _room(self, origin[part].to(self.estimator.device), of_batch(eps, part, x))
            free, step = mask_of_batch(mask, part, room.origin), of_batch(eps_step, part, x)
            points[part] = self._stepped(points[part], y[part], free, room, step)
        return points.numpy()

    def _stepped(self, points: Tensor, y: Array, mask: Tensor | None, room: Room, step: Size) -> Tensor:
        """The images of one batch after the step."""
        classifier: HRClassifier = self.estimator
        points = points.to(classifier.device)
        with classifier.attacking():
            gradient = _gradient(classifier.evaluate(points, classifier.attack_labels(y, len(points))))
        warn_of_nan([gradient.amax()], fast_gradient.logger)
        return room.inside(points + times(step, ascent(usable(gradient, mask, targeted=self.targeted), self.norm)))


class ProjectedGradientDescent(evasion.ProjectedGradientDescentPyTorch):
    """ART's ProjectedGradientDescentPyTorch (Madry et al., 2018)."""

    def generate(self, x: Array, y: Array | None = None, **kwargs: Any) -> Images:
        """
        As ART's; the success rate, for which all images are predicted twice, is computed only where ART logs it.

        :param x: Images, shape ``(n, *input_shape)``.
        :param y: Class indices or one-hot labels; the targets if targeted. By default the predictions.
        :param kwargs: `mask`: where images may change, shape ``(n, *input_shape)`` or that of one image.
        :return: Adversarial images, float32.
        """
        if not _is_lean(self, x) or projected_gradient_descent_pytorch.logger.isEnabledFor(logging.INFO):
            inherited: Images = super().generate(x, y, **kwargs)
            return inherited
        mask = self._get_mask(x, **kwargs)
        self._check_compatibility_input_and_eps(x=x)
        self._random_eps()
        targets = torch.from_numpy(self._set_targets(x, y).astype(np.float32))
        adversarial = x.astype(np.float32)
        images = torch.from_numpy(x.astype(np.float32))
        batches = range(0, len(x), self.batch_size)
        bar = projected_gradient_descent_pytorch.tqdm
        for start in bar(batches, desc="PGD - Batches", leave=False, disable=not self.verbose):
            part = slice(start, start + self.batch_size)
            free = mask_of_batch(mask, part, images)
            sizes = of_batch(self.eps, part, x), of_batch(self.eps_step, part, x)
            adversarial[part] = self._attempts(images[part], targets[part], free, *sizes)
        return adversarial

    def _attempts(self, x: Tensor, targets: Tensor, mask: Tensor | None, eps: Size, eps_step: Size) -> Images:
        """The first attempt at a batch, and instead of it, image by image, the last of the others that succeeded."""
        adversarial: Images = self._generate_batch(x, targets, mask, eps, eps_step)
        if self.num_random_init > 1:
            reference = targets.numpy().argmax(1) if self.targeted else self._classes(x.numpy())
        for _ in range(self.num_random_init - 1):
            attempt = self._generate_batch(x, targets, mask, eps, eps_step)
            success = (self._classes(attempt) == reference) == self.targeted
            adversarial[success] = attempt[success]
        return adversarial

    def _classes(self, images: Images) -> Array:
        classes: Array = self.estimator.predict(images, batch_size=self.batch_size).argmax(1)
        return classes

    def _generate_batch(self, x: Tensor, targets: Tensor, mask: Tensor | None, eps: Size, eps_step: Size) -> Images:
        """One attempt at a batch, from a random point of its own unless `num_random_init` is 0."""
        if not _is_lean(self):
            inherited: Images = super()._generate_batch(x, targets, mask, eps, eps_step)
            return inherited
        classifier: HRClassifier = self.estimator
        room, labels = _room(self, x.to(classifier.device), eps), classifier.attack_labels(targets, len(x))
        free = None if mask is None else mask.to(classifier.device)
        random = self.num_random_init > 0 and self.max_iter > 0
        points = room.random_point(free) if random else room.origin.clone()
        momentum, largest = torch.zeros_like(points), []
        with classifier.attacking():
            for _ in range(self.max_iter):
                gradient = _gradient(classifier.evaluate(points, labels))
                largest.append(gradient.amax())
                gradient = usable(gradient, free, targeted=self.targeted)
                if self.decay is not None:
                    gradient = momentum = self.decay * momentum + over_norm(gradient, 1)
                points = room.inside(points + times(eps_step, ascent(gradient, self.norm)))
        warn_of_nan(largest, projected_gradient_descent_pytorch.logger)
        adversarial: Images = points.cpu().numpy()
        return adversarial


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
        if not _is_lean(self, x) or classifier.postprocessing_defences or (y is None and self.targeted):
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
        room, checked = _room(self, origin, float(self.eps)), classifier.attack_labels(labels, len(labels))
        free = None if mask is None else torch.from_numpy(mask.astype(np.float32)).to(classifier.device)
        with classifier.attacking():
            points = torch.from_numpy(start).to(classifier.device)
            point = classifier.evaluate(points, checked)
            climb = Climb(
                Place(points, origin, point.losses, point.logits, _gradient(point)),
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


def _gradient(point: Point) -> Tensor:
    assert point.gradient is not None
    return point.gradient


def _room(attack: Any, origin: Tensor, eps: Size) -> Room:
    return Room(origin, eps, norm=attack.norm, clip_values=attack.estimator.clip_values)


def _is_lean(attack: Any, x: Array | None = None) -> bool:
    """
    Whether an attack need not be left to ART: it is on an HRClassifier, and images are arrays of numbers.

    A classifier that defines anew what ART's attacks ask for, in a subclass or on the object, would here be passed by,
    and a summary writer is told of each step.
    """
    classifier = attack.estimator
    return (
        isinstance(classifier, HRClassifier)
        and attack.summary_writer is None
        and (x is None or x.dtype.kind in "fiub")
        and all(
            getattr(getattr(classifier, name), "__func__", None) is getattr(HRClassifier, name)
            for name in ("loss_gradient", "compute_loss", "predict")
        )
    )
