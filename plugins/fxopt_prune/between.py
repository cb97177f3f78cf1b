"""Training between steps of pruning."""

from __future__ import annotations

from fxopt.plugin import Context, Program, zero_keeper


def train_between(program: Program, context: Context, name: str, key: str) -> None:
    """Trains as the user said, where there are labels; weights that are zero stay so.

    Args:
        program: Its weights are changed.
        context: Perhaps with data to train on.
        name: Of the training.
        key: The settings of the pass.
    """
    if context.training is not None and context.training.labelled:
        context.training.train(program, name=name, after_step=zero_keeper(program), key=key)
