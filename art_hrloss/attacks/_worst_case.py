"""Worst case over an ensemble of attacks: robust accuracy under all of them together."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from art.attacks.attack import EvasionAttack
from art.attacks.evasion import AutoAttack, AutoConjugateGradient, RescalingAutoConjugateGradient
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_hrloss._base_classifier import check_classifier
from art_hrloss._context import modes_kept, seeded
from art_hrloss._html import html_table
from art_hrloss._network import as_array
from art_hrloss._preconditions import Images, Labels, checked_evaluation
from art_hrloss._progress import StepwiseResult, check_verbose, run_steps, silenced
from art_hrloss.attacks._base import TensorAttack, predicted_classes
from art_hrloss.attacks._constraints import check_eps, feasible, norm_order
from art_hrloss.attacks._ensemble import ensemble

if TYPE_CHECKING:
    import pandas as pd

_NO_ATTACK = "no attack"
_COLUMNS = ("attack", "attacked", "found", "accuracy", "seconds")


@dataclass(frozen=True, eq=False, repr=False)
class WorstCase(StepwiseResult):
    """
    Result of an ensemble of attacks; ``str()``, or a notebook, shows it as a table.

    If :func:`worst_case` was interrupted, the result is that of the finished attacks, and `unfinished` names the other
    attacks, the one that was running first. They can be run later on the examples that are still `robust`.

    >>> import numpy as np
    >>> from art_hrloss import WorstCase
    >>> images = np.zeros((4, 2), dtype=np.float32)
    >>> result = WorstCase(("no attack", "PGD"), np.array([0, 1, -1, -1]), images, (4, 3), (0.0, 0.1), 0.1, "inf")
    >>> result.accuracy, result.accuracy_after, result.robust
    (0.5, {'no attack': 0.75, 'PGD': 0.5}, array([False, False,  True,  True]))
    """

    names: tuple[str, ...]  #: The names of the finished attacks, in the order of their runs; the first is "no attack".
    found_by: Labels
    """For each example, the index in `names` of the first attack that found an adversarial example, or -1 if no attack
    found one; shape ``(n,)``."""
    adversarial: Images | Tensor
    """The adversarial examples, or the originals where there is none; shape ``(n, *input_shape)``. A tensor if `x` of
    :func:`worst_case` was one."""
    attacked: tuple[int, ...]  #: The number of examples that each attack ran on: those not yet misclassified.
    seconds: tuple[float, ...]  #: The time that each attack took, in seconds.
    eps: float  #: The largest perturbation, in units of the images.
    norm: float | str  #: The norm of the perturbation.

    @property
    def robust(self) -> npt.NDArray[np.bool_]:
        """The examples for which no finished attack found an adversarial example; boolean, shape ``(n,)``."""
        return self.found_by < 0

    @property
    def accuracy(self) -> float:
        """Robust accuracy under the finished attacks, in [0, 1]; an upper bound of the true robust accuracy."""
        return float(self.robust.mean())

    @property
    def accuracy_after(self) -> dict[str, float]:
        """Robust accuracy under each finished attack together with all previous attacks, by name; in [0, 1]."""
        return {name: float((self.robust | (self.found_by > i)).mean()) for i, name in enumerate(self.names)}

    def to_frame(self) -> "pd.DataFrame":
        """
        Return a DataFrame with one row per attack.

        The columns are attack, attacked, found (the number of adversarial examples), accuracy (under this and all
        previous attacks; NaN for an unfinished attack) and seconds.

        :raises ImportError: If pandas is not installed.

        >>> import numpy as np
        >>> from art_hrloss import WorstCase
        >>> result = WorstCase(("no attack",), np.array([0, -1]), np.zeros((2, 4)), (2,), (0.0,), 0.1, "inf")
        >>> result.to_frame().accuracy.tolist()
        [0.5]
        """
        import pandas as pd

        return pd.DataFrame(self._rows(), columns=_COLUMNS)

    def __str__(self) -> str:
        lines = [_COLUMNS, *self._cells()]
        width = max(len(name) for name, *_ in lines)
        table = [f"{name:{width}}  {n:>8}  {found:>6}  {accuracy:>8}  {s:>7}" for name, n, found, accuracy, s in lines]
        return "\n".join([self._title(), *table])

    def _repr_html_(self) -> str:
        return html_table(self._title(), _COLUMNS, self._cells())

    def _title(self) -> str:
        stopped = f": incomplete, interrupted in {self.unfinished[0]}" if self.unfinished else ""
        return f"Worst case of {len(self.found_by)} examples, eps {self.eps:g}, norm {self.norm}{stopped}"

    def _rows(self) -> list[tuple[str, int, int, float, float]]:
        counts = [int((self.found_by == i).sum()) for i in range(len(self.names))]
        rows = zip(self.names, self.attacked, counts, self.accuracy_after.values(), self.seconds, strict=True)
        return [*rows, *((name, 0, 0, nan, nan) for name in self.unfinished)]

    def _cells(self) -> list[tuple[str, str, str, str, str]]:
        """Return the rows as text."""
        rows = self._rows()[: len(self.names)]
        cells = [(name, str(n), str(count), f"{accuracy:.3f}", f"{s:.1f}") for name, n, count, accuracy, s in rows]
        return [*cells, *((name, "-", "-", "-", "-") for name in self.unfinished)]


def worst_case(
    classifier: PyTorchClassifier,
    x: Any,
    y: Any,
    *,
    eps: float,
    norm: float | str = np.inf,
    attacks: Mapping[str, EvasionAttack] | None = None,
    batch_size: int = 128,
    seed: int = 0,
    verbose: bool = True,
) -> WorstCase:
    """
    Return the worst case over attacks: each attack runs on the examples for which no previous attack was successful.

    An image is an adversarial example if it is misclassified, lies within eps of the original, and inside clip_values.

    :param classifier: A PyTorchClassifier that predicts logits; it is not modified.
    :param x: Images, shape ``(n, *input_shape)``, finite and inside clip_values; they are attacked as float32. A tensor
           is copied to the network's device, and stays there in attacks of this package.
    :param y: True labels: class indices ``(n,)`` or ``(n, 1)``, or one-hot labels or probabilities ``(n, M)``.
    :param eps: The largest perturbation, in units of the images.
    :param norm: numpy.inf or 2; also 1, with attacks of that norm.
    :param attacks: Attacks of ART or of this package by name, constructed for this eps, on this or on other
           classifiers. Attacks of another norm, or without eps such as HopSkipJump, are allowed: only their images
           within eps count. {} measures clean accuracy. The default is :func:`ensemble`.
    :param batch_size: Images per prediction.
    :param seed: The seed of the global generators of Python, NumPy and torch, whose states are restored. ART's
           HopSkipJump and BoundaryAttack use other generators and are not reproducible.
    :param verbose: Whether to show a progress bar with the current attack and the robust accuracy so far. The progress
           bars of the attacks are never shown.
    :return: The adversarial examples and the robust accuracy after each attack.
    :raises ValueError: If the images, labels or logits are invalid, or if logits are random or depend on the batch; if
            an attack is targeted, constructed for a larger eps, or known not to work in ART; or if all attacks are
            constructed for a smaller eps.
    :raises TypeError: If the classifier is not a PyTorchClassifier, or `attacks` is not a mapping of attacks by name.
    :raises KeyboardInterrupt: If interrupted. As for any exception in an attack, its attribute `partial_result` is the
            WorstCase of the finished attacks; in a notebook ``sys.last_value.partial_result``.

    >>> import numpy as np, torch
    >>> from art_hrloss import HRClassifier, HRLoss, ensemble, worst_case
    >>> classifier = HRClassifier(torch.nn.Linear(4, 3), HRLoss(), (4,), 3, clip_values=(0, 1), device_type="cpu")
    >>> images = np.random.default_rng(0).random((20, 4), dtype=np.float32)
    >>> options = {"eps": 0.1, "attacks": ensemble(classifier, eps=0.1, square_iter=0), "verbose": False}
    >>> result = worst_case(classifier, images, classifier.predict(images).argmax(1), **options)
    >>> 0 <= result.accuracy <= 1
    True
    """
    check_classifier(classifier)
    check_verbose(verbose)
    eps = check_eps(eps, norm, classifier.clip_values)
    if norm_order(norm) not in (1.0, 2.0, np.inf):
        raise ValueError(f"expected norm to be 1, 2 or numpy.inf, but got {norm}")
    attacks = ensemble(classifier, eps=eps, norm=norm, batch_size=batch_size) if attacks is None else attacks
    _check_attacks(attacks, eps, norm)
    begin, tensors = time.perf_counter(), isinstance(x, Tensor)
    estimators = [getattr(attack, "estimator", None) for attack in attacks.values()]
    sources = [estimator.model for estimator in estimators if isinstance(estimator, PyTorchClassifier)]

    def run_attack(name: str, attack: EvasionAttack, result: WorstCase) -> dict[str, Any]:
        """Run an attack on the examples that are still robust, and return the changed fields of the result."""
        begin, rows = time.perf_counter(), np.flatnonzero(result.robust)
        found_by, adversarial = result.found_by.copy(), torch.as_tensor(result.adversarial).clone()
        if len(rows):
            images, true = adversarial[rows], labels[rows]
            candidates = _candidates(name, attack, images, true, tensors=tensors)
            wrong = as_array(predicted_classes(classifier, candidates, batch_size)) != true
            # An attack may leave the feasible set, by mistake or because it has no eps: such images do not count.
            wrong &= feasible(as_array(candidates), as_array(images), eps, norm, classifier.clip_values)
            found_by[rows[wrong]] = len(result.names)
            adversarial[rows[wrong]] = candidates[wrong]
        return {
            "names": (*result.names, name),
            "found_by": found_by,
            "adversarial": adversarial if tensors else as_array(adversarial),
            "attacked": (*result.attacked, len(rows)),
            "seconds": (*result.seconds, time.perf_counter() - begin),
        }

    # The checks are inside of seeded, because ART's predict draws from torch's generator.
    with modes_kept(classifier.model, *sources), silenced(attacks.values()), seeded(seed):
        images, labels, logits = checked_evaluation(classifier, x, y, batch_size=batch_size)
        found_by, seconds = np.where(logits.argmax(1) == labels, -1, 0), time.perf_counter() - begin
        originals = torch.from_numpy(images).to(classifier.device) if tensors else images
        clean = WorstCase((_NO_ATTACK,), found_by, originals, (len(images),), (seconds,), eps, norm)
        steps = {name: partial(run_attack, name, attack) for name, attack in attacks.items()}
        return run_steps(clean, steps, title="worst case", verbose=verbose)


def _check_attacks(attacks: Any, eps: float, norm: float | str) -> None:
    """Raise unless `attacks` are valid attacks by name, of which at least one is constructed for eps."""
    if not isinstance(attacks, Mapping):
        raise TypeError(f"expected attacks as a dict by name, as ensemble returns, but got a {type(attacks).__name__}")
    if any(not isinstance(name, str) or name == _NO_ATTACK for name in attacks):
        raise ValueError(f"expected names that are strings other than {_NO_ATTACK!r}, but got {list(attacks)}")
    radii = [_checked_radius(name, attack, eps, norm) for name, attack in attacks.items()]
    # NaN, for attacks without a radius in this norm, is not below eps.
    if radii and all(radius < eps * (1 - 1e-5) for radius in radii):
        raise ValueError(f"expected an attack constructed for eps {eps:g}, but got only attacks with a smaller eps")


def _candidates(name: str, attack: EvasionAttack, images: Tensor, labels: Labels, *, tensors: bool) -> Tensor:
    """
    Return the images that an attack generates, on the device of `images`.

    :param images: The originals; they and the labels are copied, because an attack may overwrite its arguments.
    :param tensors: Whether attacks that accept tensors get tensors.
    """
    if tensors and isinstance(attack, TensorAttack):
        candidates: Tensor = attack.generate(images.clone(), torch.from_numpy(labels.copy()))
    else:
        array = np.asarray(attack.generate(as_array(images).copy(), labels.copy()), dtype=np.float32)
        candidates = torch.as_tensor(array, device=images.device)
    if candidates.shape != images.shape:
        raise ValueError(
            f"expected images of shape {tuple(images.shape)} from {name}, but got {tuple(candidates.shape)}: an attack "
            "must return one image for each original"
        )
    return candidates


def _checked_radius(name: str, attack: EvasionAttack, eps: float, norm: float | str) -> float:
    """Return the largest eps of an attack of this norm, otherwise NaN; raise if it cannot be part of a worst case."""
    if isinstance(attack, type) or not hasattr(attack, "generate"):
        raise TypeError(f"expected attacks, which are objects with a method generate, but {name} is {attack!r:.60}")
    kind, norm_of_attack = type(attack).__name__, getattr(attack, "norm", None)
    conjugate = (AutoConjugateGradient, RescalingAutoConjugateGradient)
    if isinstance(attack, conjugate) and norm_of_attack in (np.inf, "inf"):
        raise ValueError(
            f"expected attacks that work in ART, but {name} is {kind}, which for the L-infinity norm omits the sign of "
            "its step and hardly changes an image: use it with norm 2, or use AutoPGD"
        )
    # targeted=True of AutoAttack adds targeted attacks to untargeted ones.
    if getattr(attack, "targeted", False) and not isinstance(attack, AutoAttack):
        raise ValueError(f"expected attacks that are not targeted, but {name} is {kind} with targeted=True")
    same_norm = norm_of_attack is not None and norm_order(norm_of_attack) == norm_order(norm)
    if not same_norm or not hasattr(attack, "eps") or getattr(attack, "minimal", False):
        return np.nan
    radius = float(np.max(attack.eps))
    if radius > eps * (1 + 1e-5):
        raise ValueError(f"expected attacks constructed for eps {eps:g}, but {name} is {kind} with eps {radius:g}")
    return radius
