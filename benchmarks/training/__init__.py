"""A run to its weights and learning curve: alone, hardened, or several at once."""

from benchmarks.training._loop import Training, TrainingError, accuracy, build_optimizer, train_epoch
from benchmarks.training._recorded import Branches, Products, Recorded
from benchmarks.training._together import can_be_recorded, stepping, tf32, train, train_together

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
