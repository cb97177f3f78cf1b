import pytest

from fxopt.errors import PassError
from fxopt.plugin import check_names, is_named

NAMES = ["layer1.0.conv1", "layer1.0.conv2", "head"]


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [("head", True), ("he*", True), ("*conv1", False), ("Head", False), ("hea", False)],
)
def test_a_pattern_matches_whole_names(pattern, matches):
    assert is_named("head", ["other", pattern]) is matches


def test_each_pattern_has_to_match():
    check_names(["head", "*.conv?"], NAMES, "skip")
    check_names([], [], "skip")
    with pytest.raises(PassError, match=r"skip names .haed., but.*\n.*did you mean .head."):
        check_names(["*", "haed"], NAMES, "skip")


def test_an_error_says_what_there_is_when_nothing_is_close():
    with pytest.raises(PassError, match=r"there are: head, layer1.0.conv1, layer1.0.conv2$"):
        check_names(["xyz"], NAMES, "skip")
    with pytest.raises(PassError, match=r"there are: l0, l1, l2, l3, l4, \.\.\."):
        check_names(["xyz"], [f"l{i}" for i in range(9)], "skip")
    with pytest.raises(PassError, match="there are none"):
        check_names(["xyz"], [], "skip")
