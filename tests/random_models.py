"""How property tests over generated models are run."""

from hypothesis import HealthCheck, settings


def on_random_models(examples):
    """Settings of hypothesis: building a model takes long, and CI sees the same ones each time."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
