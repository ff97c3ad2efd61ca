"""A classifier watched while an attack runs on it: what it is asked, and what it answers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_hrloss.attacks._constraints import Images, margins
from art_hrloss.classifier import HRClassifier


@contextmanager
def answering(classifier: PyTorchClassifier, name: str, answer: Callable[..., Any]) -> Iterator[None]:
    """The classifier, for a while, with another method of that name, whoever asks it."""
    methods = vars(classifier)
    own = {name: methods[name]} if name in methods else {}
    methods[name] = answer
    try:
        yield
    finally:
        del methods[name]
        methods.update(own)


@contextmanager
def gradients_given(classifier: PyTorchClassifier) -> Iterator[list[npt.NDArray[Any]]]:
    """The gradients that a classifier gives attacks, call by call; an attack may overwrite what it gets."""
    ask, given = classifier.loss_gradient, list[npt.NDArray[Any]]()

    def answer(*args: Any, **kwargs: Any) -> Any:
        given.append(ask(*args, **kwargs))
        return given[-1].copy()

    with answering(classifier, "loss_gradient", answer):
        yield given


@contextmanager
def margins_met(classifier: PyTorchClassifier, batch_size: int) -> Iterator[list[npt.NDArray[np.float64]]]:
    """
    The margins of all images at which a classifier is asked for a gradient, call by call.

    They are those of its predictions, which it gives to nobody else meanwhile: ART's projected gradient descent
    predicts, before and after it, only to log how many images it has broken, and gets zeros.
    """
    seen = list[npt.NDArray[np.float64]]()
    ask, predict, plain = classifier.loss_gradient, classifier.predict, _predicts_outputs(classifier)

    def answer(x: Any, y: Any, *args: Any, **kwargs: Any) -> Any:
        with _outputs(classifier) as outputs:
            gradient = ask(x, y, *args, **kwargs)
        images, rows = (v.detach().cpu().numpy() if isinstance(v, Tensor) else v for v in (x, y))
        known = plain and [output.shape for output in outputs] == [(len(images), classifier.nb_classes)]
        logits = outputs[0] if known else predict(images, batch_size=batch_size)
        seen.append(margins(logits.astype(float), rows.argmax(1)))
        return gradient

    def unasked(x: Images, **_: Any) -> npt.NDArray[np.float32]:
        return np.zeros((len(x), classifier.nb_classes), dtype=np.float32)

    with answering(classifier, "loss_gradient", answer), answering(classifier, "predict", unasked):
        yield seen


@contextmanager
def _outputs(classifier: PyTorchClassifier) -> Iterator[list[npt.NDArray[np.float32]]]:
    """What the network gives, pass by pass."""
    seen = list[npt.NDArray[np.float32]]()
    # ART calls its wrapper, which gives a list of outputs; the last of them are the network's.
    hook = classifier._model.register_forward_hook(lambda *pass_: seen.append(pass_[2][-1].detach().cpu().numpy()))
    try:
        yield seen
    finally:
        hook.remove()


def _predicts_outputs(classifier: PyTorchClassifier) -> bool:
    """Whether `predict` gives the outputs of the network as they are."""
    ours = type(classifier).predict in (PyTorchClassifier.predict, HRClassifier.predict)
    return ours and "predict" not in vars(classifier) and not classifier.postprocessing_defences
