"""
ART's gradient attacks, without what they compute twice: the same images, at the same seeds.

Each is a subclass of ART's own, made with its parameters and taken wherever that is. Against an
:class:`~art_hrloss.HRClassifier`, a batch goes to the device once, each point through the network once, and nothing is
computed only to be logged. Against any other, and wherever :func:`~art_hrloss.lean.is_lean` says no, they are ART's as
inherited.

The images are ART's bit for bit, but for rounding in three cases: finite norms of FastGradientMethod and
AutoProjectedGradientDescent, which NumPy sums in another order; sizes as float64 arrays in FastGradientMethod; and
AutoProjectedGradientDescent in batches of more than 128, which ART cuts up for the losses. Of a network that is random
even in evaluation mode, Auto-PGD sees other draws: ART's sees two of each point.
"""

import logging
from typing import Any

import numpy as np
import torch
from art.attacks import evasion
from art.attacks.evasion import fast_gradient
from art.attacks.evasion.projected_gradient_descent import projected_gradient_descent_pytorch
from torch import Tensor

from art_hrloss.attacks._auto_pgd import AutoProjectedGradientDescent
from art_hrloss.attacks._lean import is_lean
from art_hrloss.attacks._steps import (
    Array,
    Images,
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
from art_hrloss.classifier import HRClassifier

__all__ = ["AutoProjectedGradientDescent", "FastGradientMethod", "ProjectedGradientDescent"]


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
        if others or options or not project or not is_lean(self, x):
            inherited: Images = super()._compute(
                x, x_init, y, mask, eps, eps_step, project, random_init, *others, **options
            )
            return inherited
        # The difference of the two is in the precision that NumPy gives to it, and so is its projection.
        origin = torch.from_numpy(x_init.astype(np.result_type(np.float32, x_init.dtype)))
        same = x is x_init and origin.dtype == torch.float32
        points = origin if same else torch.from_numpy(x.astype(np.float32))
        adversarial = torch.empty_like(points)
        if random_init:
            points = Room.around(self, points, eps).random_point(mask_of_batch(mask, slice(None), points))
        for start in range(0, len(x), self.batch_size):
            part = slice(start, start + self.batch_size)
            room = Room.around(self, origin[part].to(self.estimator.device), of_batch(eps, part, x))
            free, step = mask_of_batch(mask, part, room.origin), of_batch(eps_step, part, x)
            adversarial[part] = self._stepped(points[part], y[part], free, room, step)
        return adversarial.numpy()

    def _stepped(self, points: Tensor, y: Array, mask: Tensor | None, room: Room, step: Size) -> Tensor:
        """The images of one batch after the step."""
        classifier: HRClassifier = self.estimator
        points = points.to(classifier.device)
        with classifier.attacking():
            gradient = classifier.evaluate(points, classifier.attack_labels(y, len(points))).slope
        warn_of_nan(gradient.amax(), fast_gradient.logger)
        return room.inside(times(step, ascent(usable(gradient, mask, targeted=self.targeted), self.norm)).add_(points))


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
        if not is_lean(self, x) or projected_gradient_descent_pytorch.logger.isEnabledFor(logging.INFO):
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
        if not is_lean(self):
            inherited: Images = super()._generate_batch(x, targets, mask, eps, eps_step)
            return inherited
        classifier: HRClassifier = self.estimator
        room, labels = Room.around(self, x.to(classifier.device), eps), classifier.attack_labels(targets, len(x))
        free = None if mask is None else mask.to(classifier.device)
        random = self.num_random_init > 0 and self.max_iter > 0
        points = room.random_point(free) if random else room.origin.clone()
        momentum = None if self.decay is None else torch.zeros_like(points)
        # One number for all steps: what each step left behind would shift the next one's memory, and malloc then gives
        # activations back to the system and fetches them anew, at up to a tenth of the time.
        largest = points.new_zeros(())
        with classifier.attacking():
            for _ in range(self.max_iter):
                gradient = classifier.evaluate(points, labels).slope
                torch.maximum(largest, gradient.amax(), out=largest)
                gradient = usable(gradient, free, targeted=self.targeted)
                if momentum is not None:
                    momentum = self.decay * momentum + over_norm(gradient, 1)
                    gradient = momentum.clone()
                points = room.inside(times(eps_step, ascent(gradient, self.norm)).add_(points))
        warn_of_nan(largest, projected_gradient_descent_pytorch.logger)
        adversarial: Images = points.cpu().numpy()
        return adversarial
