"""ART's Square attack, which sees the logits alone, made to ask about no image twice."""

import hashlib
from collections import ChainMap, deque
from collections.abc import Callable
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt
from art.attacks.evasion import SquareAttack
from art.estimators.classification import PyTorchClassifier

from art_hrloss.attacks._constraints import Images
from art_hrloss.attacks._watching import answering

# Of the largest logit, how much two answers for one image may differ: other batches make other sums.
_ROUNDING = 1e-4


class Square(SquareAttack):
    """
    ART's Square attack (Andriushchenko et al., 2020), at a third of its price: the same images from the same draws.

    For each of its queries ART's asks the network three times: about all images, again about those that still stand,
    and about what it would try on them. Only the last are new; the logits of the others are remembered here. A network
    that answers twice differently is asked every time.
    """

    def generate(
        self, x: npt.NDArray[Any], y: npt.NDArray[Any] | None = None, **kwargs: Any
    ) -> npt.NDArray[np.float32]:
        """Attack images, shape ``(n, *input_shape)``: see ART's."""
        memory = _Memory(self.estimator.predict)
        with answering(self.estimator, "predict", memory.predict):
            made: Images = super().generate(x, y, **kwargs)
        return made


def is_for_square(classifier: PyTorchClassifier, norm: float | str) -> bool:
    """Whether ART's Square attack can run: its first square, 0.8 of the image, must be smaller than each side."""
    shape = classifier.input_shape
    if len(shape) != 3 or classifier.clip_values is None:
        return False
    height, width = shape[1:] if classifier.channels_first else shape[:2]
    side = round((0.8 * height * width) ** 0.5)
    if float(norm) == np.inf:
        return bool(side < min(height, width))
    # In norm 2 squares have an odd side, and a pattern of a fifth of the image's is 0 where that is a single pixel.
    return bool(height == width >= 10 and side | 1 < height)


class _Memory:
    """What a classifier answered, image by image; of no use once it answers otherwise when it is asked again."""

    def __init__(self, ask: Callable[..., npt.NDArray[np.float32]]) -> None:
        self.ask, self.calls = ask, deque[dict[bytes, npt.NDArray[np.float32]]](maxlen=3)
        self.steady: bool | None = None  # until the first image comes again

    def predict(self, x: npt.NDArray[Any], **options: Any) -> npt.NDArray[np.float32]:
        """Images, shape ``(n, *input_shape)``, to what `ask` gives, shape ``(n, M)``."""
        keys, known = [hashlib.blake2b(image.tobytes()).digest() for image in x], ChainMap(*self.calls)
        asked = np.array([not self.steady or key not in known for key in keys])
        rows = {key: known[key] for key in keys if key in known}
        new = dict(zip(compress(keys, asked), self.ask(x[asked], **options), strict=True)) if asked.any() else {}
        if self.steady is None and rows:
            self.steady = all(_agree(new[key], row) for key, row in rows.items())
        self.calls.append(rows | new)
        return np.stack([self.calls[-1][key] for key in keys])


def _agree(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> bool:
    return np.allclose(one, other, rtol=0, atol=_ROUNDING * float(np.abs(one).max()), equal_nan=True)
