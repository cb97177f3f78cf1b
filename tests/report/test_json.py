import dataclasses
import json
import math

import pytest

from fxopt.errors import InputError
from fxopt.report import Report
from fxopt.report.json import report_from_json, report_to_json, save_report


def test_round_trip(report):
    assert report_from_json(report_to_json(report)) == report


def test_round_trip_of_an_empty_report():
    report = Report("net", "cpu", "", "")
    assert report_from_json(report_to_json(report)) == report


def test_numbers_without_a_form_in_json_survive(report):
    report = dataclasses.replace(report, drift=math.inf, score_after=math.nan)
    text = report_to_json(report)
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    again = report_from_json(text)
    assert again.drift == math.inf
    assert math.isnan(again.score_after)


def test_details_that_are_no_json_become_texts(report):
    record = dataclasses.replace(report.passes[0], details={"n": 3, "of": (1, 2), "what": {4j: 1j}})
    again = report_from_json(report_to_json(dataclasses.replace(report, passes=(record,))))
    assert again.passes[0].details == {"n": 3, "of": [1, 2], "what": {"4j": "1j"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no report"),
        ("[]", "no report"),
        ('{"model": "net"}', "no report"),
        ('{"schema": 99}', "version 99"),
        ('{"schema": 1, "model": "net"}', "damaged"),
        ('{"schema": 1, "model": "", "target": "", "inputs": "", "recipe": "", "x": 1}', "no x"),
    ],
)
def test_what_is_no_report_is_an_error_of_ours(text, message):
    with pytest.raises(InputError, match=message):
        report_from_json(text)


def test_saves_where_no_folder_is_yet(report, tmp_path):
    path = tmp_path / "run" / "report.json"
    save_report(report, path)
    assert report_from_json(path.read_text()) == report
