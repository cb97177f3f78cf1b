"""How much memory is left: of the machine, and of what its control group allows."""

import sys

import pytest

from fxopt.cost import memory_left

MACHINE = {
    "meminfo": "MemTotal: 8000 kB\nMemFree: 100 kB\nMemAvailable: 6000 kB\nHugePages_Total: 0\n"
}


def version_2(limit, used=900, cached=0):
    return {
        "group/memory.max": f"{limit}\n",
        "group/memory.current": f"{used}\n",
        "group/memory.stat": f"anon {used - cached}\nfile {cached}\ninactive_file {cached}\n",
    }


def version_1(limit, used=900, cached=0):
    return {
        "group/memory/memory.limit_in_bytes": f"{limit}\n",
        "group/memory/memory.usage_in_bytes": f"{used}\n",
        "group/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {cached}\n",
    }


@pytest.mark.parametrize(
    ("files", "share"),
    [
        ({}, 1.0),
        (MACHINE, 0.75),
        (MACHINE | version_2("max"), 0.75),
        (MACHINE | version_2(1000), 0.1),
        (MACHINE | version_2(1000, cached=400), 0.5),
        (MACHINE | version_2(900_000), 0.75),
        (MACHINE | version_2(800), 0.0),
        (version_2(1000), 0.1),
        (MACHINE | version_1(1000), 0.1),
        (MACHINE | version_1(1000, cached=400), 0.5),
        (MACHINE | version_1(9223372036854771712), 0.75),
    ],
)
def test_the_least_of_machine_and_group_counts(tmp_path, files, share):
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert memory_left(tmp_path / "meminfo", tmp_path / "group") == pytest.approx(share)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_this_machine_tells():
    assert 0 < memory_left() < 1
