"""What tests of the worker process share."""

import time
from pathlib import Path

import torch

from tests.building import image

PLUGIN = "tests.pipeline.bad_backends"
EXAMPLES = [[image(2)], [image(3)]]


def references(program, examples=EXAMPLES):
    with torch.no_grad():
        return [program(*flat) for flat in examples]


def worker_of(isolation):
    return isolation._held.process._process


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(pid, seconds=10.0):
    end = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not is_alive(pid)
