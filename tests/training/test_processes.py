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


def run(folder, cases, *how):
    environment = {
        **os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }  # fmt: skip
    command = [sys.executable, *how, str(SCRIPT), str(folder), *cases]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process found in each case."""
    folder = run(tmp_path_factory.mktemp("alone"), ["plain", "judged"])
    return lambda case: torch.load(folder / f"{case}.alone.pt", weights_only=True)


@pytest.fixture(scope="module")
def folder_of_two(tmp_path_factory):
    """All cases in one start of two processes: the starts would take most of the time."""
    cases = ["plain", "judged", "uneven", "norm", "late"]
    cases += ["dropout", "dropout", "checkpointed", "checkpointed"]
    return run(tmp_path_factory.mktemp("two"), cases, *TWO)


@pytest.fixture
def both(folder_of_two):
    """What each of two processes found in a case."""
    return lambda case: [
        torch.load(folder_of_two / f"{case}.{rank}.pt", weights_only=True) for rank in (0, 1)
    ]


@pytest.fixture
def in_two(both):
    """What two processes found in a case, once it is known to be the same."""

    def found(case):
        first, second = both(case)
        assert first["losses"] == second["losses"]
        assert first["stopped"] == second["stopped"]
        for name, tensor in first["weights"].items():
            assert torch.equal(tensor, second["weights"][name]), name
        return first

    return found


@pytest.mark.parametrize("case", ["plain", "judged"])
def test_two_processes_end_with_the_weights_of_one(case, alone, in_two):
    one, two = alone(case), in_two(case)
    assert two["rows"] == [rows // 2 for rows in one["rows"]]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-9)
    assert two["stopped"] == one["stopped"]
    assert ("no lower loss" in two["stopped"]) == (case == "judged")
    for name, tensor in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], tensor, rtol=1e-9, atol=1e-12)


def test_a_batch_that_does_not_divide_stops_nobody(in_two):
    found = in_two("uneven")
    assert found["rows"] == [4, 4, 4, 4, 4, 3]
    assert len(found["losses"]) == 1


def test_statistics_of_batch_norms_are_the_same_in_both(in_two):
    assert "1.running_mean" in in_two("norm")["weights"]


def test_each_drops_its_own_and_the_same_once_more(in_two, both):
    first, second = (found["masks"] for found in both("dropout"))
    every = [mask.flatten().tolist() for mask in first + second]
    assert len(every) == 2 * 2 * 6
    assert len({tuple(mask) for mask in every}) == len(every)
    again = in_two("dropout again")["masks"]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_one_that_is_late_stops_both(in_two):
    found = in_two("late")
    assert found["stopped"] == "time limit"
    assert found["losses"] == ()


def test_both_go_on_from_the_checkpoint_of_the_first(in_two):
    expected, again = in_two("checkpointed"), in_two("checkpointed again")
    assert any("goes on after 2 epochs" in line for line in again["lines"])
    for name, tensor in expected["weights"].items():
        assert torch.equal(tensor, again["weights"][name])


def test_what_connects_them_is_ended_by_who_started_it(folder_of_two, tmp_path):
    theirs = run(tmp_path, ["connected"], *TWO)
    for folder, left in ((folder_of_two, "False"), (theirs, "True")):
        assert [(folder / f"{rank}.connected").read_text() for rank in (0, 1)] == [left, left]


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
