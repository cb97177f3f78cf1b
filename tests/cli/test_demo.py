import re

import pytest


@pytest.mark.slow
def test_the_demo_shows_what_it_gained(fxopt):
    result = fxopt("demo", "--epochs", 1, "--width", 8, "--backend", "openvino")
    assert result.exit_code == 0, result.output
    right = float(re.search(r"([\d.]+)% of 1000 test images right", result.stdout)[1])
    assert right > 60
    before, after = map(float, re.search(r"score +([\d.]+) -> ([\d.]+)", result.stdout).groups())
    assert before == pytest.approx(right / 100, abs=1e-3)
    assert after > before - 0.02
    assert re.search(r"latency +[\d.]+ ms -> [\d.]+ ms", result.stdout)
