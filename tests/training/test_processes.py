"""A training in two processes is the one that it is in one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree

from fxopt.training.processes import Processes

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("part_of_a_training.py")
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def run(folder, case, *how):
    environment = {
        **os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }  # fmt: skip
    command = [sys.executable, *how, str(SCRIPT), str(folder), case]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def in_two(folder, case):
    run(folder, case, *TWO)
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["losses"] == second["losses"]
    assert first["stopped"] == second["stopped"]
    for name, tensor in first["weights"].items():
        assert torch.equal(tensor, second["weights"][name]), name
    return first


@pytest.mark.parametrize("case", ["plain", "judged"])
def test_two_processes_end_with_the_weights_of_one(case, tmp_path):
    run(tmp_path, case)
    alone = torch.load(tmp_path / "alone.pt", weights_only=True)
    both = in_two(tmp_path, case)
    assert both["rows"] == [rows // 2 for rows in alone["rows"]]
    assert both["losses"] == pytest.approx(alone["losses"], rel=1e-9)
    assert both["stopped"] == alone["stopped"]
    assert ("no lower loss" in both["stopped"]) == (case == "judged")
    for name, tensor in alone["weights"].items():
        torch.testing.assert_close(both["weights"][name], tensor, rtol=1e-9, atol=1e-12)


def test_a_batch_that_does_not_divide_stops_nobody(tmp_path):
    found = in_two(tmp_path, "uneven")
    assert found["rows"] == [4, 4, 4, 4, 4, 3]
    assert len(found["losses"]) == 1


def test_statistics_of_batch_norms_are_the_same_in_both(tmp_path):
    assert "1.running_mean" in in_two(tmp_path, "norm")["weights"]


def test_each_drops_its_own_and_the_same_once_more(tmp_path):
    in_two(tmp_path, "dropout")
    first, second = (torch.load(tmp_path / f"{rank}.pt")["masks"] for rank in (0, 1))
    every = [mask.flatten().tolist() for mask in first + second]
    assert len(every) == 2 * 2 * 6
    assert len({tuple(mask) for mask in every}) == len(every)
    in_two(tmp_path, "dropout")
    again = torch.load(tmp_path / "0.pt")["masks"]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_one_that_is_late_stops_both(tmp_path):
    found = in_two(tmp_path, "late")
    assert found["stopped"] == "time limit"
    assert found["losses"] == ()


def test_both_go_on_from_the_checkpoint_of_the_first(tmp_path):
    expected = in_two(tmp_path, "checkpointed")
    again = in_two(tmp_path, "checkpointed")
    assert any("goes on after 2 epochs" in line for line in again["lines"])
    for name, tensor in expected["weights"].items():
        assert torch.equal(tensor, again["weights"][name])


@pytest.mark.parametrize(("case", "left"), [("uneven", "False"), ("connected", "True")])
def test_what_connects_them_is_ended_by_who_started_it(case, left, tmp_path):
    in_two(tmp_path, case)
    assert [(tmp_path / f"{rank}.connected").read_text() for rank in (0, 1)] == [left, left]


class Third:
    """What accelerate says in the last of three processes."""

    num_processes, process_index = 3, 2


@pytest.mark.parametrize(("size", "rows"), [(6, [4, 5]), (7, [6, 0, 1]), (1, [0]), (2, [0])])
def test_shares_are_of_one_size_and_hold_all_rows(size, rows):
    x, table = torch.arange(size), torch.zeros(9, 3)
    batch = ((x, {"more": x + 1, "table": table}, "text"), {"scale": torch.tensor(2.0)}, x.double())
    taken = Processes(Third()).share(batch)
    (got, inner, text), named, target = taken
    assert got.tolist() == rows
    assert inner["more"].tolist() == [row + 1 for row in rows]
    assert inner["table"] is table
    assert target.tolist() == rows
    assert (text, float(named["scale"])) == ("text", 2.0)
    everyone = set()
    for index in range(3):
        other = Third()
        other.process_index = index
        everyone |= set(pytree.tree_leaves(Processes(other).share(batch))[0].tolist())
    assert everyone == set(range(size))
