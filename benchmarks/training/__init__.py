"""A run to its weights and learning curve: alone, hardened, or several at once."""

from benchmarks.training._loop import Training, TrainingError, accuracy, build_optimizer, train, train_epoch
from benchmarks.training._together import can_be_stacked, train_together

__all__ = [
    "Training",
    "TrainingError",
    "accuracy",
    "build_optimizer",
    "can_be_stacked",
    "train",
    "train_epoch",
    "train_together",
]
