"""The edit against a naive float64 reference and its algebraic properties (arXiv 2305.01644 Eqs. 3, 4, appendix B)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perfusion_ops.edit import gate_and_remove, project, solve_targets
from tests.support.tiny_base import naive_edit, random_metric

D, R, N = 12, 20, 5


def draw(seed, batch=1, concepts=1, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    return normal(batch, N, D), normal(batch, concepts, D), normal(batch, concepts, R), normal(R, D)


def edit(e, i, o, weight, metric, bias, temperature, used=None):
    used = torch.ones(i.shape[:2], dtype=torch.bool) if used is None else used
    targets = solve_targets(i, used, metric.inverse)

    def to(value):
        return torch.full(i.shape[:2], value, dtype=i.dtype) if isinstance(value, float) else value

    kept, gates = gate_and_remove(e, targets, to(bias), to(temperature))
    return project(kept, gates, o, weight)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    concepts=st.integers(1, 4),
    bias=st.floats(-0.5, 1.5),
    temperature=st.floats(0.05, 1.0),
    condition=st.floats(1, 1e5),
)
def test_the_edit_equals_the_naive_float64_reference(seed, concepts, bias, temperature, condition):
    metric = random_metric(D, seed=seed % 97, condition=condition)
    e, i, o, weight = draw(seed, concepts=concepts)
    result = edit(e, i, o, weight, metric, bias, temperature)
    for n in range(N):
        wanted = naive_edit(
            e[0, n], weight, metric.inverse, [(i[0, j], o[0, j], bias, temperature) for j in range(concepts)]
        )
        torch.testing.assert_close(result[0, n], wanted, rtol=1e-6, atol=1e-6)


def test_float32_stays_close_to_float64_at_real_widths():
    metric = random_metric(768, condition=1e6)
    root = torch.linalg.cholesky(metric.second_moment)
    g = torch.Generator().manual_seed(1)
    # Encodings distributed as the metric says, like real ones.
    e = (torch.randn(1, 77, 768, generator=g, dtype=torch.float64) @ root.T) * 30
    i = e[:, 5:7].clone()
    o, weight = torch.randn(1, 2, 64, generator=g, dtype=torch.float64), torch.randn(64, 768, generator=g).double()
    exact = edit(e, i, o, weight, metric, 0.6, 0.15)
    single = edit(e.float(), i.float(), o.float(), weight.float(), metric, 0.6, 0.15)
    assert (single - exact).abs().max() < 2e-3 * exact.abs().max()


def test_the_target_input_maps_to_the_gated_output():
    metric = random_metric(D)
    _, i, o, weight = draw(1)
    result = edit(i, i, o, weight, metric, 0.75, 0.1)
    torch.testing.assert_close(result[0, 0], o[0, 0] / (1 + math.exp(-(1 - 0.75) / 0.1)))


def test_an_orthogonal_encoding_passes_unchanged():
    metric = random_metric(D)
    e, i, o, weight = draw(2)
    dual = metric.inverse @ i[0, 0]
    e = e - (e @ dual)[..., None] * i / (i[0, 0] @ dual)
    torch.testing.assert_close(edit(e, i, o, weight, metric, 2.0, 0.05), e @ weight.T, rtol=1e-9, atol=1e-9)


def test_a_linear_gate_with_the_old_output_is_the_identity():
    metric = random_metric(D)
    e, i, _, weight = draw(3)
    targets = solve_targets(i, torch.ones(1, 1, dtype=torch.bool), metric.inverse)
    kept, _ = gate_and_remove(e, targets, torch.zeros(1, 1), torch.ones(1, 1))
    similarity = (e @ targets.dual.mT) / targets.energy[:, None]
    torch.testing.assert_close(project(kept, similarity, i @ weight.T, weight), e @ weight.T)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), concepts=st.integers(1, 5))
def test_the_removed_part_is_a_metric_projection(seed, concepts):
    metric = random_metric(D, condition=1e4)
    e, i, _, _ = draw(seed, concepts=concepts)
    targets = solve_targets(i, torch.ones(1, concepts, dtype=torch.bool), metric.inverse)
    zero, one = torch.zeros(1, concepts), torch.ones(1, concepts)
    kept, _ = gate_and_remove(e, targets, zero, one)
    again, _ = gate_and_remove(kept, targets, zero, one)
    torch.testing.assert_close(again, kept, rtol=1e-7, atol=1e-7)
    of_inputs, _ = gate_and_remove(i, targets, zero, one)
    assert of_inputs.abs().max() < 1e-7
    assert (kept @ targets.dual.mT).abs().max() < 1e-6 * targets.dual.abs().max()


def test_one_concept_equals_the_same_concept_beside_unused_slots():
    metric = random_metric(D)
    e, i, o, weight = draw(4)
    alone = edit(e, i, o, weight, metric, 0.6, 0.15)
    _, more_i, more_o, _ = draw(5, concepts=3)
    padded_i = torch.cat([torch.full_like(i, float("nan")), i, more_i[:, :2]], 1)
    padded_o = torch.cat([more_o[:, :1], o, more_o[:, 1:]], 1)
    used = torch.tensor([[False, True, False, False]])
    torch.testing.assert_close(edit(e, padded_i, padded_o, weight, metric, 0.6, 0.15, used), alone)


def test_the_scale_of_the_metric_does_not_matter():
    metric, larger = random_metric(D), random_metric(D)
    larger = type(metric)(larger.second_moment * 10, larger.inverse / 10, 0.0, "", 1.0, "")
    e, i, o, weight = draw(5, concepts=3)
    torch.testing.assert_close(
        edit(e, i, o, weight, larger, 0.6, 0.15), edit(e, i, o, weight, metric, 0.6, 0.15), rtol=1e-9, atol=1e-9
    )


def test_the_result_does_not_depend_on_where_an_encoding_stands():
    metric = random_metric(D)
    e, i, o, weight = draw(6, concepts=2)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        edit(e[:, order], i, o, weight, metric, 0.6, 0.15), edit(e, i, o, weight, metric, 0.6, 0.15)[:, order]
    )


def test_rows_with_their_own_concepts_biases_and_temperatures_equal_one_by_one():
    metric = random_metric(D)
    e, i, o, weight = draw(7, batch=4, concepts=3)
    g = torch.Generator().manual_seed(0)
    bias, temperature = torch.rand(4, 3, generator=g).double(), 0.1 + torch.rand(4, 3, generator=g).double()
    used = torch.tensor([[1, 1, 1], [0, 0, 0], [0, 1, 0], [1, 0, 1]], dtype=torch.bool)
    together = edit(e, i, o, weight, metric, bias, temperature, used)
    for b in range(4):
        slots = used[b].nonzero()[:, 0]
        concepts = [(i[b, j], o[b, j], float(bias[b, j]), float(temperature[b, j])) for j in slots]
        for n in range(N):
            torch.testing.assert_close(together[b, n], naive_edit(e[b, n], weight, metric.inverse, concepts))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_autocast_does_not_touch_the_gates(kind):
    metric = random_metric(D, condition=1e4)
    e, i, o, weight = draw(8, concepts=2, dtype=torch.float32)
    plain = edit(e, i, o, weight, metric, 0.6, 0.15)
    with torch.autocast("cpu", dtype=kind):
        automatic = edit(e, i, o, weight, metric, 0.6, 0.15)
    assert torch.equal(plain, automatic)


def test_half_precision_projection_is_within_its_own_rounding():
    metric = random_metric(D)
    e, i, o, weight = draw(9, concepts=2, dtype=torch.float32)
    plain = edit(e, i, o, weight, metric, 0.6, 0.15)
    half = edit(e, i, o, weight.bfloat16(), metric, 0.6, 0.15)
    assert half.dtype == torch.bfloat16
    assert (half.float() - plain).abs().max() < 0.03 * plain.abs().max()


def test_the_same_concept_twice_is_refused():
    metric = random_metric(D)
    _, i, _, _ = draw(10)
    with pytest.raises(ValueError, match="learned the same direction"):
        solve_targets(torch.cat([i, i], 1), torch.ones(1, 2, dtype=torch.bool), metric.inverse)


def test_a_zero_target_is_refused():
    with pytest.raises(ValueError, match="no energy"):
        solve_targets(torch.zeros(1, 1, D), torch.ones(1, 1, dtype=torch.bool), random_metric(D).inverse)


def test_the_edit_of_a_linear_gate_is_a_rank_one_lora():
    width, rows = 12, 20
    metric = random_metric(width)
    g = torch.Generator().manual_seed(0)
    e = torch.randn(2, 7, width, dtype=torch.float64, generator=g)
    i, o = torch.randn(2, 1, width, dtype=torch.float64, generator=g), torch.randn(2, 1, rows, generator=g).double()
    weight = torch.randn(rows, width, dtype=torch.float64, generator=g)
    targets = solve_targets(i, torch.ones(2, 1, dtype=torch.bool), metric.inverse)
    linear = torch.tensor([[True], [False]])
    kept, gates = gate_and_remove(e, targets, torch.full((2, 1), 0.7), torch.full((2, 1), 0.1), linear)
    found = project(kept, gates, o, weight)
    dual = metric.inverse @ i[0, 0] / (i[0, 0] @ metric.inverse @ i[0, 0])
    edited = weight + torch.outer(o[0, 0] - weight @ i[0, 0], dual)
    torch.testing.assert_close(found[0], e[0] @ edited.T)
    # The other row keeps its sigmoid.
    plain = project(*gate_and_remove(e, targets, torch.full((2, 1), 0.7), torch.full((2, 1), 0.1)), o, weight)
    assert torch.equal(found[1], plain[1])
    assert not torch.allclose(found[0], plain[0])
