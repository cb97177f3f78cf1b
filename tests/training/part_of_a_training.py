"""Trains small nets, in one process or as one of several, and saves what comes out of each.

Usage:
    torchrun --standalone --nproc_per_node 2 part_of_a_training.py FOLDER CASE...
"""

import atexit
import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, TensorDataset

from fxopt.frontend import capture_program
from fxopt.training import Trainer, Training


def shuffled(rows):
    """Batches of 8, and what is left."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=8, shuffle=True)


def net(case):
    torch.manual_seed(0)
    between = {"norm": [nn.BatchNorm1d(16)], "dropout": [nn.Dropout(0.5)]}.get(case, [])
    return nn.Sequential(nn.Linear(6, 16), *between, nn.Tanh(), nn.Linear(16, 2)).double().eval()


CASES = {
    "plain": {"epochs": 3, "optimizer": "sgd"},
    "judged": {"epochs": 9, "learning_rate": 3.0, "schedule": "constant", "patience": 1},
    "uneven": {"epochs": 1},
    "norm": {"epochs": 2},
    "dropout": {"epochs": 2},
    "checkpointed": {"epochs": 2, "checkpoint_seconds": 0},
    "late": {"epochs": 2},
    "connected": {"epochs": 1},
}


def note_connection(path):
    """Says whether the processes are still connected when nothing else is left to do."""
    path.write_text(str(distributed.is_initialized()))
    if distributed.is_initialized():
        distributed.destroy_process_group()


def main():
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    rank = os.environ.get("RANK", "alone")
    atexit.register(note_connection, folder / f"{rank}.connected")  # runs after later ones
    for case in cases:
        found = train(case, rank, folder)
        once = folder / f"{case}.{rank}.pt"
        torch.save(found, folder / f"{case} again.{rank}.pt" if once.exists() else once)


def train(case, rank, folder):
    data = shuffled(45 if case == "uneven" else 48)  # two processes cannot halve 5 rows
    rows = []

    def loss(outputs, target):
        rows.append(len(target))
        return nn.functional.cross_entropy(outputs, target)

    validation = data if case == "judged" else None
    if case == "connected":
        distributed.init_process_group("gloo")
    settings = Training(data, loss, validation=validation, **CASES[case])
    program = capture_program(net(case), (torch.randn(4, 6).double(),), {}).clone()
    lines, masks = [], []
    for leaf in program.module.modules():
        if isinstance(leaf, nn.Dropout):
            leaf.register_forward_hook(lambda _, inputs, output: masks.append(output != 0))
    trained = Trainer(
        settings,
        folder=folder / "checkpoints" if case == "checkpointed" else None,
        # one of them alone is late: the others have to stop with it
        deadline=(0.0 if rank == "1" else 1e12) if case == "late" else None,
        progress=lines.append,
    ).train(program)
    return {
        "weights": program.module.state_dict(),
        "losses": trained.losses,
        "stopped": trained.stopped,
        "rows": rows,
        "lines": lines,
        "masks": masks,
    }


if __name__ == "__main__":
    main()
