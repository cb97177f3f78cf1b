"""Properties of the exact passes, on random models."""

from hypothesis import given

from fxopt.testing import worst_error
from fxopt.testing.strategies import generated_cases
from fxopt_cleanup import FACTS as CLEANUP_FACTS
from fxopt_cleanup import Cleanup
from fxopt_fold_bn import FACTS as FOLD_BN_FACTS
from fxopt_fold_bn import FoldBN
from tests.random_models import on_random_models

PASSES = (
    (Cleanup(), CLEANUP_FACTS, 1e-10),
    (FoldBN(), FOLD_BN_FACTS, 1e-9),
)


def hold_to_its_word(item, facts, tolerance, case, program):
    """Runs a pass on ``program`` itself."""
    before = program.fingerprint()
    result = item.run(program, case.context())
    program.verify()
    assert result.changed == (program.fingerprint() != before)
    assert worst_error(case, program) <= tolerance
    for fact in facts:
        assert list(fact.counterexamples(program)) == []
    assert not item.run(program.clone(), case.context()).changed


# Most of the time is torch.export's, so that one model serves for both passes.
@on_random_models(30)
@given(generated_cases())
def test_passes_keep_their_word_alone_and_in_turn(case):
    original = case.program.fingerprint()
    together = case.program.clone()
    for item, facts, tolerance in PASSES:
        hold_to_its_word(item, facts, tolerance, case, case.program.clone())
        hold_to_its_word(item, facts, tolerance, case, together)
    assert case.program.fingerprint() == original
