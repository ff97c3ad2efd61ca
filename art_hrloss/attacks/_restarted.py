"""
Strong white-box attacks, built from ART's and driven by any loss.

Each makes as many attempts as it is told, and keeps what went wrong on the way. Their random starts are drawn from
numpy's global generator.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_hrloss._context import modes_kept
from art_hrloss.attacks._constraints import Images, Labels, at_least_one, checked_eps
from art_hrloss.attacks._gradient import AutoProjectedGradientDescent, ProjectedGradientDescent
from art_hrloss.attacks._losses import AttackLossName, attack_loss
from art_hrloss.attacks._restarts import KeepsTheFirst, per_image
from art_hrloss.classifier import attack_view


class PGD(KeepsTheFirst, ProjectedGradientDescent):
    """
    ART's projected gradient descent (Madry et al., 2018) along any loss, with restarts, keeping whatever went wrong.

    Its estimator is a view of the classifier, so that ART's AdversarialTrainer takes it for an attack on another one
    and makes the images once, before it trains.
    """

    def __init__(
        self,
        classifier: PyTorchClassifier,
        loss: AttackLossName | nn.Module = "hr",
        *,
        eps: float,
        norm: float | str = np.inf,
        eps_step: float | None = None,
        max_iter: int = 40,
        restarts: int = 1,
        batch_size: int = 128,
    ) -> None:
        """
        :param classifier: What to attack: a PyTorchClassifier that predicts logits.
        :param loss: The loss to climb, by name, or any that HRClassifier takes as its `attack_loss`.
        :param eps: The largest perturbation, in units of the images.
        :param norm: numpy.inf, 1 or 2.
        :param eps_step: The step; 2.5 eps / max_iter by default.
        :param max_iter: Steps per attempt.
        :param restarts: Attempts, each from a random start in the ball, on what the ones before have left standing.
        :param batch_size: Images that are attacked together; it changes no image but by the random starts.
        """
        eps, max_iter = checked_eps(eps), at_least_one("max_iter", max_iter)
        super().__init__(
            attack_view(classifier, _module(loss)),
            norm=norm,
            eps=eps,
            eps_step=2.5 * eps / max_iter if eps_step is None else eps_step,
            max_iter=max_iter,
            num_random_init=1,
            batch_size=batch_size,
            verbose=False,
        )
        self.restarts = at_least_one("restarts", restarts)

    def generate(self, x: Images, y: npt.NDArray[Any] | None = None, **kwargs: Any) -> Images:
        """Attack images, shape ``(n, *input_shape)``: see :class:`PGD`; `mask` is where they may change."""
        return self._with_restarts(x, y, self.restarts, **kwargs)

    def _climbed(self, images: Images, labels: Labels, mask: Any) -> tuple[Images, npt.NDArray[np.float32]]:
        free = None if mask is None else torch.tensor(np.broadcast_to(mask, images.shape), dtype=torch.float32)
        inputs = torch.from_numpy(images), torch.from_numpy(labels)
        last = self._generate_batch(*inputs, free, self.eps, self.eps_step)
        return last, self.estimator.predict(last, batch_size=len(last))


class AutoPGD(KeepsTheFirst, AutoProjectedGradientDescent):
    """
    ART's Auto-PGD (Croce and Hein, 2020) along any loss, with restarts, keeping whatever went wrong.

    It climbs the loss of each example in its exact form, so that ART's stop at a loss of exactly 0 waits for a margin
    of 87, not of 17. Its estimator is a view, as that of :class:`PGD`.
    """

    def __init__(
        self,
        classifier: PyTorchClassifier,
        loss: AttackLossName | nn.Module = "hr",
        *,
        eps: float,
        norm: float | str = np.inf,
        max_iter: int = 100,
        restarts: int = 1,
        batch_size: int = 128,
    ) -> None:
        """
        :param classifier: What to attack: a PyTorchClassifier that predicts logits.
        :param loss: The loss to climb, by name, or any that HRClassifier takes as its `attack_loss`.
        :param eps: The largest perturbation, in units of the images.
        :param norm: numpy.inf, 1 or 2.
        :param max_iter: Steps per attempt; the first has the length 2 eps.
        :param restarts: Attempts, each from a random start in the ball, on what the ones before have left standing.
        :param batch_size: Images that are attacked together; it changes no image but by the random starts.
        """
        eps, view = checked_eps(eps), attack_view(classifier, _module(loss))
        with modes_kept(view.model):  # It asks whether the network predicts probabilities.
            super().__init__(
                view,
                norm=norm,
                eps=eps,
                eps_step=2 * eps,
                max_iter=max_iter,
                nb_random_init=1,
                batch_size=batch_size,
                loss_type=None,
                verbose=False,
            )
        self.restarts = at_least_one("restarts", restarts)

    def generate(self, x: Images, y: npt.NDArray[Any] | None = None, **kwargs: Any) -> Images:
        """Attack images, shape ``(n, *input_shape)``: see :class:`AutoPGD`."""
        if kwargs.get("mask") is not None:
            raise NotImplementedError("expected no mask, because ART's Auto-PGD starts at a random point outside of it")
        return self._with_restarts(x, y, self.restarts, **kwargs)

    def _climbed(self, images: Images, labels: Labels, mask: Any) -> tuple[Images, npt.NDArray[np.float32]]:
        start = self._start(images, images)
        last, outputs = self._climb(start, images, labels, mask)
        if self.estimator.postprocessing_defences:
            outputs = self.estimator.predict(last, batch_size=len(last))
        # As in ART: an image that it has not broken is back where it began.
        return np.where(per_image(outputs.argmax(1) != labels, last), last, start), outputs


def _module(loss: AttackLossName | nn.Module) -> nn.Module:
    return loss if isinstance(loss, nn.Module) else attack_loss(loss)
