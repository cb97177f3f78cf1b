import json

import pytest
import torch

import fxopt as api
from fxopt.report import report_from_json

QUICK = ("--input", "2x3x16x16", "--backend", "eager")


def test_prints_the_report_and_writes_it(fxopt, models, tmp_path):
    path = tmp_path / "run" / "report.json"
    result = fxopt("optimize", f"{models}:Net", *QUICK, "--passes", "cleanup", "--json", path)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Net on cpu")
    report = report_from_json(path.read_text())
    assert [record.name for record in report.passes] == ["cleanup"]
    assert report.inputs == "2x3x16x16, any batch"
    assert json.loads(path.read_text())["model"] == "Net"


def test_saves_what_can_be_loaded(fxopt, models, tmp_path):
    path = tmp_path / "net.fxopt"
    result = fxopt("optimize", f"{models}:Net", *QUICK, "--passes", "cleanup", "--save", path)
    assert result.exit_code == 0, result.output
    loaded = api.load(path)
    assert loaded.report.model == "Net"
    assert torch.isfinite(loaded(torch.randn(3, 3, 16, 16))).all()


def test_workdir_keeps_dumps(fxopt, models, tmp_path):
    result = fxopt(
        "optimize", f"{models}:Net", *QUICK, "--passes", "cleanup", "--workdir", tmp_path / "run"
    )
    assert result.exit_code == 0, result.output
    run = tmp_path / "run"
    assert list(run.rglob("00_*.txt"))
    assert report_from_json((run / "report.json").read_text()).model == "Net"


def test_score_and_limits(fxopt, models):
    result = fxopt(
        "optimize", f"{models}:Net", *QUICK, "--passes", "fold_bn,quantize",
        "--calibration", f"{models}:loader", "--evaluate", f"{models}:score", "--max-drop", 0.5,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "1.0000 -> 1.0000" in result.stdout
    assert "quantize" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--passes", "quantize"], "--calibration FILE.npy"),
        (["--backend", "egaer"], "did you mean 'eager'?"),
        (["--target", "tpu"], "the targets are"),
        (["--evaluate", "nowhere.py:f"], "there is no file nowhere.py"),
        (["--input", "a,b"], "cannot read the input"),
        (["--calibration", "random", "--weights", "DEFAULT"], "no default weights"),
    ],
)
def test_mistakes_are_explained(fxopt, models, options, message):
    result = fxopt("optimize", f"{models}:Net", "--input", "2x3x16x16", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
