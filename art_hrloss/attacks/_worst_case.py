"""The worst case over an ensemble of attacks, example by example."""

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
    The result of an ensemble of attacks, example by example.

    If :func:`worst_case` was stopped it is of the attacks that had finished, and `unfinished` names the others, the one
    in progress first. They can be run on the examples that are still `robust`.
    """

    names: tuple[str, ...]  #: The finished attacks in their order; the first is "no attack".
    found_by: Labels
    """Shape ``(n,)``: for each example the index in `names` of the first attack that found an adversarial example; -1
    where none did."""
    adversarial: Images | Tensor
    """Shape ``(n, *input_shape)``: the adversarial example, or the original image. A tensor if the images were."""
    attacked: tuple[int, ...]  #: How many examples each attack was tried on: those not yet misclassified.
    seconds: tuple[float, ...]  #: How long each attack took.
    eps: float
    norm: float | str

    @property
    def robust(self) -> npt.NDArray[np.bool_]:
        """The examples that no finished attack misclassified, shape ``(n,)``."""
        return self.found_by < 0

    @property
    def accuracy(self) -> float:
        """Robust accuracy: the share of the examples that no finished attack misclassified; an upper bound."""
        return float(self.robust.mean())

    @property
    def accuracy_after(self) -> dict[str, float]:
        """Robust accuracy under each finished attack and all those before it, by name."""
        return {name: float((self.robust | (self.found_by > i)).mean()) for i, name in enumerate(self.names)}

    def to_frame(self) -> "pd.DataFrame":
        """
        Return a row per attack as a DataFrame: attack, attacked, found, accuracy, seconds; needs pandas.

        An unfinished attack has no accuracy, NaN.
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
        stopped = f": incomplete, stopped in {self.unfinished[0]}" if self.unfinished else ""
        return f"Worst case of {len(self.found_by)} examples, eps {self.eps:g}, norm {self.norm}{stopped}"

    def _rows(self) -> list[tuple[str, int, int, float, float]]:
        found = [int((self.found_by == i).sum()) for i in range(len(self.names))]
        rows = zip(self.names, self.attacked, found, self.accuracy_after.values(), self.seconds, strict=True)
        return [*rows, *((name, 0, 0, nan, nan) for name in self.unfinished)]

    def _cells(self) -> list[tuple[str, str, str, str, str]]:
        """Return the rows as text."""
        rows = self._rows()[: len(self.names)]
        cells = [(name, str(n), str(found), f"{accuracy:.3f}", f"{s:.1f}") for name, n, found, accuracy, s in rows]
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
    Run one attack after another, each on the examples that none before it has misclassified.

    An image is an adversarial example if it lies within eps of the original, in the range of the pixels, and is
    misclassified.

    :param x: Images, shape ``(n, *input_shape)``, finite and inside clip_values; attacked as float32. A tensor is
           brought to the network's device, where those attacks leave it that are of this package.
    :param y: True labels, in any form of :func:`art_hrloss._labels.parse_labels`.
    :param eps: The largest perturbation, in units of the images.
    :param norm: numpy.inf or 2; 1 as well, with attacks of that norm.
    :param attacks: ART's attacks by name, each constructed for this eps, on the classifier or on others; of one of
           another norm, or for the nearest adversarial image, as HopSkipJump, only what lies within eps counts; {}
           measures clean accuracy. By default :func:`ensemble`.
    :param batch_size: Images per prediction.
    :param seed: Of Python's, NumPy's and torch's global generators, which are restored. ART's attacks draw from them,
           but for its own HopSkipJump and BoundaryAttack, which start at images that no seed decides.
    :param verbose: Whether to show a progress bar: the attack in progress, and how many examples are robust so far. The
           attacks' own bars are off either way.
    :raises ValueError: If robust accuracy would mean nothing: see
            :func:`art_hrloss._preconditions.checked_evaluation`; or if an attack is targeted, constructed for more than
            eps, or known not to work in ART; or if all are constructed for less.
    :raises KeyboardInterrupt: If interrupted. Its attribute `partial_result`, as that of any exception in an attack, is
            the WorstCase of the attacks that had finished; in a notebook ``sys.last_value.partial_result``.

    >>> import torch
    >>> from art_hrloss import HRClassifier, HRLoss
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
    if not isinstance(attacks, Mapping):
        raise TypeError(f"expected attacks by name, a dict as ensemble returns, but got a {type(attacks).__name__}")
    if any(not isinstance(name, str) or name == _NO_ATTACK for name in attacks):
        raise ValueError(f"expected names that are strings other than {_NO_ATTACK!r}, but got {list(attacks)}")
    radii = [_checked_radius(name, attack, eps, norm) for name, attack in attacks.items()]
    if radii and all(radius < eps * (1 - 1e-5) for radius in radii):
        raise ValueError(f"expected an attack constructed for eps {eps:g}, but got attacks of smaller ones alone")
    begin, tensors = time.perf_counter(), isinstance(x, Tensor)
    estimators = [getattr(attack, "estimator", None) for attack in attacks.values()]
    others = [estimator.model for estimator in estimators if isinstance(estimator, PyTorchClassifier)]

    def tried(name: str, attack: EvasionAttack, result: WorstCase) -> dict[str, Any]:
        """Try an attack on the examples that are still robust; return what that changes of the result."""
        begin, rows = time.perf_counter(), np.flatnonzero(result.robust)
        found_by, adversarial = result.found_by.copy(), torch.as_tensor(result.adversarial).clone()
        if len(rows):
            images, true = adversarial[rows], labels[rows]
            candidates = _candidates(name, attack, images, true, tensors=tensors)
            wrong = as_array(predicted_classes(classifier, candidates, batch_size)) != true
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

    # ART's predict draws from torch's generator as well.
    with modes_kept(classifier.model, *others), silenced(attacks.values()), seeded(seed):
        images, labels, logits = checked_evaluation(classifier, x, y, batch_size=batch_size)
        found_by, spent = np.where(logits.argmax(1) == labels, -1, 0), time.perf_counter() - begin
        originals = torch.from_numpy(images).to(classifier.device) if tensors else images
        clean = WorstCase((_NO_ATTACK,), found_by, originals, (len(images),), (spent,), eps, norm)
        steps = {name: partial(tried, name, attack) for name, attack in attacks.items()}
        return run_steps(clean, steps, title="worst case", verbose=verbose)


def _candidates(name: str, attack: EvasionAttack, images: Tensor, labels: Labels, *, tensors: bool) -> Tensor:
    """
    Return the images that an attack makes, where the given ones are.

    :param images: They and the labels are copied: an attack may overwrite its own.
    :param tensors: Whether attacks that take tensors get them.
    """
    if tensors and isinstance(attack, TensorAttack):
        candidates: Tensor = attack.generate(images.clone(), torch.from_numpy(labels.copy()))
    else:
        made = np.asarray(attack.generate(as_array(images).copy(), labels.copy()), dtype=np.float32)
        candidates = torch.as_tensor(made, device=images.device)
    if candidates.shape != images.shape:
        raise ValueError(
            f"expected images of shape {tuple(images.shape)} from {name}, but got {tuple(candidates.shape)}: an attack "
            "returns an image for each that it is given"
        )
    return candidates


def _checked_radius(name: str, attack: EvasionAttack, eps: float, norm: float | str) -> float:
    """Return the largest eps of an attack of this norm, NaN for any other; raise if it has no place in a worst case."""
    if isinstance(attack, type) or not hasattr(attack, "generate"):
        raise TypeError(f"expected attacks, objects with a method generate, but {name} is {attack!r:.60}")
    kind, norm_of_attack = type(attack).__name__, getattr(attack, "norm", None)
    conjugate = (AutoConjugateGradient, RescalingAutoConjugateGradient)
    if isinstance(attack, conjugate) and norm_of_attack in (np.inf, "inf"):
        raise ValueError(
            f"expected attacks that work in ART, but {name} is {kind}, which for the L-infinity norm "
            "leaves out the sign of its step and so hardly moves: use it with norm 2, or AutoPGD"
        )
    # AutoAttack means by it that targeted attacks come on top.
    if getattr(attack, "targeted", False) and not isinstance(attack, AutoAttack):
        raise ValueError(f"expected attacks that are not targeted, but {name} is {kind} with targeted=True")
    same_norm = norm_of_attack is not None and norm_order(norm_of_attack) == norm_order(norm)
    if not same_norm or not hasattr(attack, "eps") or getattr(attack, "minimal", False):
        return np.nan
    radius = float(np.max(attack.eps))
    if radius > eps * (1 + 1e-5):
        raise ValueError(f"expected attacks constructed for eps {eps:g}, but {name} is {kind} with eps {radius:g}")
    return radius
