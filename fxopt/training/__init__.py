"""Training a program back: the one trainer that all passes share."""

from fxopt.training.settings import Loss, Training
from fxopt.training.trainer import Objective, Trained, Trainer

__all__ = ["Loss", "Objective", "Trained", "Trainer", "Training"]
