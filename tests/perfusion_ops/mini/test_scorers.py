"""The embedded scorers: they load offline from the package and see what is there."""

from perfusion_ops.mini.embedded import embedded_scorers
from perfusion_ops.mini.quality.measure import measure_scorers
from perfusion_ops.scoring.models import load_scorers


def test_the_scorers_recognise_real_renders():
    found = measure_scorers(load_scorers(embedded_scorers()), 240)
    assert found.read.class_share >= 0.98
    assert found.read.context_share >= 0.98
    assert found.read.color_share >= 0.93
    assert found.identity_equal_error_rate <= 0.05
    assert found.dual_recall_at_1_of_200 >= 0.5
