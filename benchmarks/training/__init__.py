"""A run to its weights and learning curve: alone, hardened, or several at once."""

from benchmarks.training._loop import Training, TrainingError, accuracy, build_optimizer, train_epoch
from benchmarks.training._recorded import Recorded
from benchmarks.training._together import can_be_recorded, stepping, tf32, train, train_together
from benchmarks.training._ways import Branches, Products

__all__ = [
    "Branches",
    "Products",
    "Recorded",
    "Training",
    "TrainingError",
    "accuracy",
    "build_optimizer",
    "can_be_recorded",
    "stepping",
    "tf32",
    "train",
    "train_epoch",
    "train_together",
]
