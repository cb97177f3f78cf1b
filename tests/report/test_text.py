import dataclasses

import pytest

from fxopt.report import CandidateRecord, PassRecord, RegionRecord, Report
from fxopt.report import format as show
from fxopt.report.text import render_text

GOLDEN = """\
resnet50 on cpu, 2 threads, avx512_vnni                                 input 1x3x224x224, any batch

  latency     58.3 ms -> 12.6 ms  4.6x     median, +-0.2 ms
  size        97.8 MB -> 24.9 MB  3.9x     weights
  quality     drift 1.8 %                  same top-1 on 252 of 256 calibration samples
  score       0.8123 -> 0.8101    -0.0022  evaluate, higher is better

  pass        nodes       seconds   work   size  drift  what it did
  cleanup     176 -> 174      0.1      -      -  exact  2 dead
  fold_bn     174 -> 121      0.3      -      -  exact  53 done
  relu6       -               0.0      -      -      -  skipped: no clamp(x, 0, 6)
  prune       121             1.0  -45 %  -49 %    1 %  less
  quantize    121             4.2      -  -50 %  1.8 %  54 layers int8, per channel, histogram of
                                                        256 samples, 18 refused

  region      operations  backend   ran in            ms  next best
  whole net   121         openvino  54 int8, 3 f32  12.6  inductor 15.1

  recipe      cleanup,fold_bn,quantize{calibrator=histogram}
  notes       the batch stays symbolic
  refused     quantize: layer0: only 3 channels
              quantize: layer1: only 3 channels
              quantize: layer2: only 3 channels
              quantize: layer3: only 3 channels
              quantize: layer4: only 3 channels
              quantize: layer5: only 3 channels
              quantize: and 12 more (report.json has all)
  out         whole net: eager: slower than the model as it was
"""


def test_layout(report):
    assert render_text(report) == GOLDEN


@pytest.mark.parametrize("width", [80, 120])
def test_fits_the_width(report, width):
    lines = render_text(report, width).splitlines()
    assert max(map(len, lines)) <= width
    assert any("openvino  54 int8, 3 f32  12.6  inductor 15.1" in line for line in lines)


def test_shows_only_what_is_known():
    text = render_text(Report("net", "cpu", "1x3", "", latency_after=0.0312))
    assert text.split() == ["net", "on", "cpu", "input", "1x3", "latency", "0.031", "ms",
                            "median,", "+-0", "ms", "recipe", "(no", "pass)"]  # fmt: skip


def test_says_which_layers_cost_most():
    table = {f"layer{i}": (0.5 / (i + 1), 0.01) for i in range(9)}
    record = PassRecord("quantize", "quantize", False, "applied", details={"costs": table})
    lines = render_text(Report("net", "cpu", "1x3", "", passes=(record,))).splitlines()
    assert "  costs most  quantize: layer0: 50 % of the error, 1 % of the gain" in lines
    assert "              quantize: layer1: 25 % of the error, 1 % of the gain" in lines
    assert any("and 3 more" in line for line in lines)


def test_says_why_a_pass_was_rolled_back():
    record = PassRecord("bad", "bad", True, "rolled back", "output error 0.3 at conv1", 9, 9)
    text = render_text(Report("net", "cpu", "1x3", "", passes=(record,)))
    assert "rolled back: output error 0.3 at conv1" in text
    assert "exact" not in text


def test_names_the_version_where_several_were_tried(report):
    lossy = report.regions[0].chosen
    exact = CandidateRecord("openvino", "exact", 9.0)
    region = RegionRecord("whole net", 121, exact, (exact, lossy))
    text = render_text(Report("net", "cpu", "1x3", "", regions=(region,)))
    assert "openvino (exact)" in text
    assert "openvino (lossy) 12.6" in text


def test_few_refusals_are_all_shown():
    record = PassRecord("p", "p", True, "applied", refused=tuple("abcdefg"))
    text = render_text(Report("net", "cpu", "1x3", "", passes=(record,)))
    assert "p: g" in text
    assert "more" not in text


def test_brackets_are_no_markup(report):
    record = dataclasses.replace(report.passes[0], summary="removed [dropout]", refused=("[x]: y",))
    text = render_text(Report("net[0]", "cpu", "1x3", "p{k=[a,b]}", passes=(record,)))
    for literal in ("net[0]", "removed [dropout]", "[x]: y", "p{k=[a,b]}"):
        assert literal in text


def test_a_score_column_where_passes_were_scored(report):
    scored = dataclasses.replace(report.passes[0], score=0.9876)
    text = render_text(Report("net", "cpu", "1x3", "", passes=(scored, report.passes[2])))
    assert "score" in text
    assert "0.9876" in text


@pytest.mark.parametrize(
    ("error", "text"),
    [(None, "-"), (0.0, "0"), (3.1e-7, "3e-07"), (0.0182, "1.8 %"), (0.2, "20 %"), (1.5, "150 %")],
)
def test_relative_errors(error, text):
    assert show.relative(error) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [(58.3, 12.6, "4.6x"), (100, 2, "50x"), (1.0, 1.05, "0.95x"), (1.0, 0.0, "")],
)
def test_ratios(before, after, text):
    assert show.ratio(before, after) == text


def test_what_is_merely_slower_takes_one_line(report):
    best = report.regions[0].chosen
    slow = CandidateRecord("inductor", "lossy", 15.1, reason="in its trial", slower=True)
    untried = CandidateRecord("onednn", "lossy", reason="not tried", slower=True)
    wrong = CandidateRecord("wrong", "lossy", reason="output error 0.3")
    region = RegionRecord("whole net", 121, best, (best, slow, untried, wrong))
    text = render_text(Report("net", "cpu", "1x3", "", regions=(region,)))
    assert "whole net: inductor 15.1; not tried: onednn" in text
    assert "whole net: wrong: output error 0.3" in text
    assert text.count("whole net: ") == 2


def test_long_names_of_backends_leave_room_for_the_next_best():
    chosen = CandidateRecord("openvino bf16 2 streams", "lossy", 7.56, precisions={"int8": 10})
    other = CandidateRecord("openvino bf16", "lossy", 15.9, precisions={"int8": 10})
    region = RegionRecord("whole net", 35, chosen, (chosen, other))
    text = render_text(Report("Net", "cpu", "1x1", "cleanup", regions=(region,)), width=78)
    assert "openvino bf16 15.9" in text
