"""Training of runs: one at a time, adversarially, or several together."""

from benchmarks.training._cuda_graph import Recorded
from benchmarks.training._loop import Training, TrainingError, accuracy, build_optimizer, train_epoch
from benchmarks.training._train import can_be_recorded, epoch_function, tf32, train, train_together
from benchmarks.training._vectorized import Branches, Products

__all__ = [
    "Branches",
    "Products",
    "Recorded",
    "Training",
    "TrainingError",
    "accuracy",
    "build_optimizer",
    "can_be_recorded",
    "epoch_function",
    "tf32",
    "train",
    "train_epoch",
    "train_together",
]
