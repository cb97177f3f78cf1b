"""Trained models and their data: one table, one file a kind of data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tasks.base import Inputs, Predict, Task
from tasks.fashion import fashion
from tasks.files import magika
from tasks.imagenet import efficientnet_lite0
from tasks.sentences import minilm
from tasks.speech import silero

__all__ = ["TASKS", "Inputs", "Predict", "Task"]

TASKS: dict[str, Callable[[Path], list[Task]]] = {
    "fashion_resnet": lambda cache: [fashion("fashion_resnet", cache)],
    "fashion_mobilenet": lambda cache: [fashion("fashion_mobilenet", cache)],
    "efficientnet_lite0": lambda cache: efficientnet_lite0(),
    "minilm": lambda cache: [minilm()],
    "magika": lambda cache: [magika()],
    "silero_vad": lambda cache: [silero()],
}
"""By name: makes the tasks of a model, and keeps what it had to train in a folder."""
