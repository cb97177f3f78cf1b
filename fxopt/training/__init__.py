"""Training a program back: the one trainer that all passes share."""

from fxopt.training.settings import Loss, Training
from fxopt.training.trainer import Criterion, Objective, Trained, Trainer
from fxopt.training.zeros import zero_keeper

__all__ = ["Criterion", "Loss", "Objective", "Trained", "Trainer", "Training", "zero_keeper"]
