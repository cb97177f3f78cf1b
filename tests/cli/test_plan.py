import pytest

from fxopt.passes import parse_passes
from fxopt.registry import default_registry


def test_plan_without_a_model(fxopt):
    result = fxopt("plan", "--passes", "cleanup")
    assert result.exit_code == 0
    assert result.stdout.split()[:3] == ["1", "prepare", "cleanup"]


def test_plan_for_a_model(fxopt, models):
    result = fxopt("plan", f"{models}:Net", "--input", "2x3x16x16", "--passes", "cleanup")
    assert result.exit_code == 0, result.output
    assert "prepare" in result.stdout


@pytest.mark.parametrize(
    ("passes", "error", "hint"),
    [
        ("clenup", "unknown pass 'clenup'", "did you mean 'cleanup'?"),
        ("cleanup{x=1}", "unknown setting of cleanup 'x'", "there are: "),
        ("cleanup{parameters=3}", "parameters=3 is not a bool", ""),
        ("cleanup{", "brackets", ""),
    ],
)
def test_errors_of_ours_are_shown_in_a_box_without_a_traceback(fxopt, passes, error, hint):
    result = fxopt("plan", "--passes", passes)
    assert result.exit_code == 2
    assert error in result.stderr
    assert hint in result.stderr
    assert "Traceback" not in result.output
    assert "SettingError" in result.stderr


def test_debug_shows_the_traceback(fxopt):
    result = fxopt("--debug", "plan", "--passes", "clenup")
    assert type(result.exception).__name__ == "SettingError"


def test_a_model_without_inputs(fxopt, models):
    result = fxopt("plan", f"{models}:Net", "--passes", "cleanup")
    assert result.exit_code == 2
    assert "--input 1x3x224x224" in result.stderr


def test_recipes_of_the_listing_parse(fxopt):
    """What `fxopt passes` prints as settings is what a recipe takes."""
    known = default_registry().passes
    from fxopt.passes import default_settings

    for name, cls in known.items():
        text = ",".join(default_settings(cls))
        assert parse_passes(f"{name}{{{text}}}", known) == [cls()]
