"""The linear edit: the least-squares solution that it claims to be, and errors as a naive computation finds them."""

from dataclasses import replace

import pytest
import torch

from perfusion_ops.conditioning import PromptRow, condition, prompt_row
from perfusion_ops.export.errors import measure
from perfusion_ops.export.files import export
from perfusion_ops.export.form import Form
from perfusion_ops.export.linear import Gating, LinearEdit, coordinates, encoded, fit, targets_of
from perfusion_ops.export.lora import ExportError
from perfusion_ops.export.prompts import export_prompts
from tests.support.exports import ORIGIN, PAIR, word_concept
from tests.support.tiny_base import random_metric, small_base

BIAS, TEMPERATURE = 0.7, 0.15


@pytest.fixture(scope="module")
def base():
    return small_base()


@pytest.fixture(scope="module")
def metric(base):
    return random_metric(base.text_width)


@pytest.fixture(scope="module")
def prompts(base):
    return {number: export_prompts(base, number, each=60, held_out=20) for number in (1, 2)}


def gating(base, metric, words=("mug",)):
    concepts = tuple(word_concept(base, metric, word, seed) for seed, word in enumerate(words))
    return Gating(concepts, BIAS, TEMPERATURE)


def linear(base, edit, encodings):
    weight = base.stack.weight
    return encodings @ weight.mT + (encodings @ edit.down.mT) @ edit.up.mT


@pytest.mark.parametrize("words", [("mug",), ("mug", "bag")])
def test_the_coordinates_are_the_gated_edit(base, metric, prompts, words):
    told = gating(base, metric, words)
    text = " and a ".join(f"{{{number}}}" for number in range(len(words)))
    texts = [f"a photo of a {text} in the snow", f"{text}"]
    rows = [prompt_row(each, told.concepts, bias=BIAS, temperature=TEMPERATURE, lock="local") for each in texts]
    expected = condition(base, metric, rows).kv
    found, _ = encoded(base, [base.texts.tokenize(each) for each in texts], told)
    edit = fit(base, metric, told, prompts[len(words)][0])
    added = coordinates(found, targets_of(metric, told), told).float() @ edit.up.mT
    assert torch.allclose(found @ base.stack.weight.mT + added, expected, atol=1e-4)


@pytest.mark.parametrize("words", [("mug",), ("mug", "bag")])
def test_each_row_is_exact_at_the_mean_of_the_concept_s_token(base, metric, prompts, words):
    told = gating(base, metric, words)
    fitting, _ = prompts[len(words)]
    edit = fit(base, metric, told, fitting)
    assert edit.down.shape == (2 * len(words), base.text_width)
    found, slots = encoded(base, fitting.named, told)
    wanted = coordinates(found, targets_of(metric, told), told)
    for number in range(len(words)):
        own = slots == number
        mean, target = found[own].double().mean(0), wanted[own].mean(0)
        pair = slice(2 * number, 2 * number + 2)
        assert torch.allclose(edit.down.double()[pair] @ mean, target[pair], atol=1e-4)


def test_no_other_rows_fit_better(base, metric, prompts):
    told = gating(base, metric)
    fitting, _ = prompts[1]
    edit = fit(base, metric, told, fitting)
    found, slots = encoded(base, fitting.named, told)
    empty, _ = encoded(base, [base.texts.tokenize("")])
    plain, _ = encoded(base, fitting.plain)
    wanted = coordinates(found, targets_of(metric, told), told)
    mean = found[slots == 0].double().mean(0)

    def loss(down):
        missed = (found.double() @ down.mT - wanted).square()
        missed[slots == 0] *= 1000
        zeros = 100 * (empty.double() @ down.mT).square().sum((0, 1)) + 0.02 * (plain.double() @ down.mT).square().sum(
            (0, 1)
        )
        return missed.sum((0, 1)) + zeros

    best = loss(edit.down.double())
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-3, 1e-2):
        step = scale * torch.randn(edit.down.shape, generator=generator, dtype=torch.float64)
        step -= (step @ mean)[:, None] * mean / mean.square().sum()  # stays exact at the mean
        assert bool((loss(edit.down.double() + step) > best).all())


def test_the_errors_are_those_of_keys_and_values(base, metric, prompts):
    told = gating(base, metric)
    fitting, held_out = prompts[1]
    edit = fit(base, metric, told, fitting).stored(torch.float16)
    errors = measure(base, metric, told, edit, held_out)
    found, slots = encoded(base, held_out.named, told)
    own = slots == 0
    plain = found @ base.stack.weight.mT
    [concept] = told.concepts
    inverse = metric.inverse.double()
    similarity = found.double() @ inverse @ concept.target_input.double()
    similarity /= concept.target_input.double() @ inverse @ concept.target_input.double()
    gates = torch.sigmoid((similarity - BIAS) / TEMPERATURE)
    gated = gates[..., None] * concept.outputs(base.stack).double()
    gated = gated - similarity[..., None] * (base.stack.weight @ concept.target_input).double()
    missed = (linear(base, edit, found).double() - plain.double() - gated).norm(dim=-1)
    assert errors.own == pytest.approx(float((missed[own] / gated[own].norm(dim=-1)).mean()), rel=1e-2)  # of float16
    assert errors.others == pytest.approx(
        float((missed[~own] / plain[~own].norm(dim=-1)).mean()), rel=1e-2
    )  # of float16
    for tokens, error in ((held_out.plain, errors.without), ([base.texts.tokenize("")], errors.empty)):
        encodings, _ = encoded(base, tokens)
        before = encodings @ base.stack.weight.mT
        share = (linear(base, edit, encodings) - before).norm(dim=-1) / before.norm(dim=-1)
        assert error == pytest.approx(float(share.mean()), rel=1e-2)


def test_no_edit_misses_all_of_it(base, metric, prompts):
    told = gating(base, metric)
    edit = fit(base, metric, told, prompts[1][0])
    nothing = LinearEdit(torch.zeros_like(edit.down), edit.up)
    errors = measure(base, metric, told, nothing, prompts[1][1])
    assert errors.own == pytest.approx(1.0)
    assert (errors.without, errors.empty) == (0.0, 0.0)


def test_two_concepts_of_one_direction_are_refused(base, metric, prompts):
    [concept] = gating(base, metric).concepts
    with pytest.raises(ValueError, match="same direction"):
        fit(base, metric, Gating((concept, concept), BIAS, TEMPERATURE), prompts[2][0])


def test_held_out_prompts_are_others(prompts):
    for fitting, held_out in prompts.values():
        assert len(fitting.named) > 60
        assert not {row.ids for row in fitting.named} & {row.ids for row in held_out.named}
        assert not {row.ids for row in fitting.plain} & {row.ids for row in held_out.plain}
        assert all(set(row.slots) == {-1, *range(max(row.slots) + 1)} for row in (*fitting.named, *held_out.named))
        assert all(set(row.slots) == {-1} for row in (*fitting.plain, *held_out.plain))
    assert max(max(row.slots) for row in prompts[2][0].named) == 1


def test_a_linear_gate_is_exported_without_a_fit(base, metric, prompts):
    one, other = (
        replace(word_concept(base, metric, word, seed), gate="linear") for word, seed in (("mug", 1), ("bag", 2))
    )
    for concepts in ((one,), (one, other)):
        edit = fit(base, metric, Gating(concepts, BIAS, TEMPERATURE), prompts[1][0])
        # Equal in every prompt, not only in those that it would have been fitted on.
        texts, each = ("a red hat", ""), (0.6,) * len(concepts)
        encodings, _ = encoded(base, [base.texts.tokenize(text) for text in texts])
        wanted = condition(base, metric, [PromptRow(text, concepts, each, each) for text in texts]).kv
        torch.testing.assert_close(linear(base, edit, encodings), wanted, rtol=1e-3, atol=1e-3)
    for form in (Form.DIFFUSERS, Form.COMFYUI):
        with pytest.raises(ExportError, match="export it with --to lora"):
            export(base, metric, [one], ORIGIN, form, bias=0.6, temperature=0.15)


@pytest.mark.long
def test_onnx_files_are_graphs_a_script_and_the_concepts(base, metric):
    concepts = [word_concept(base, metric, word, seed) for word, seed in (("mug", 1), ("bag", 2))]
    exported = export(base, metric, concepts, PAIR, Form.ONNX, bias=0.6, temperature=0.15)
    graphs = {"text_encoder.onnx", "edit.onnx", "denoiser.onnx", "decoder.onnx"}
    host = {"draw.py", "tokenizer.json", "model.json"}
    assert set(exported.files) == {*graphs, *host, "mug-0042.safetensors", "bag-7.safetensors"}
