"""The concept file: its size at Stable Diffusion 1.5's widths, what it binds to, and all the files it refuses."""

import dataclasses
import json
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perfusion_ops.concept import GatedConcept
from perfusion_ops.concept_file import ConceptFileError, read_concept, write_concept
from perfusion_ops.projection import KeyValueStack
from perfusion_ops.tensors import tensor_file

SD15 = {"embedding_width": 768, "text_width": 768, "value_width": 12_480}


def concept(lock="local", **sizes) -> GatedConcept:
    sizes = {**SD15, **sizes}
    g = torch.Generator().manual_seed(0)

    def normal(n, scale):
        return torch.randn(n, generator=g) * scale

    return GatedConcept(
        superclass="teddy bear",
        embedding=normal(sizes["embedding_width"], 0.02),
        target_input=normal(sizes["text_width"], 1.0),
        superclass_input=normal(sizes["text_width"], 1.0),
        value_target=normal(sizes["value_width"], 0.5),
        key_target=normal(sizes["value_width"], 0.5) if lock == "trained" else None,
        lock=lock,
        base_digest="b" * 64,
        metric_digest="c" * 64,
    )


def read(data, **changes) -> GatedConcept:
    return read_concept(data, **{"base_digest": "b" * 64, "metric_digest": "c" * 64, **SD15, **changes})


def test_a_concept_of_stable_diffusion_15_takes_at_most_32_kilobytes():
    data = write_concept(concept())
    assert sum(tensor.numel() for tensor in concept().tensors().values()) == 14_784
    assert len(data) <= 32_768


@pytest.mark.parametrize("lock", ["local", "trained"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_storage_keeps_what_the_type_can_hold(lock, dtype):
    one = concept(lock)
    again = read(write_concept(one, dtype=dtype))
    assert (again.superclass, again.lock, again.loss) == (one.superclass, one.lock, None)
    told = dataclasses.replace(one, loss=1 / 3)
    assert read(write_concept(told, dtype=dtype)).loss == told.loss
    for name, tensor in one.tensors().items():
        assert torch.equal(again.tensors()[name], tensor.to(dtype).float())


def test_another_base_or_metric_is_refused_with_the_remedy():
    data = write_concept(concept())
    with pytest.raises(ConceptFileError, match=r"another base model \(bbbbbbbbbbbb.*train it again"):
        read(data, base_digest="x" * 64)
    with pytest.raises(ConceptFileError, match="another metric"):
        read(data, metric_digest="x" * 64)


def test_values_beyond_float16_are_refused_when_written():
    one = concept()
    one.value_target[3] = 1e5
    with pytest.raises(ConceptFileError, match="value_target"):
        write_concept(one)


def tampered(change):
    tensors = {name: tensor.half() for name, tensor in concept().tensors().items()}
    metadata = {"format": "perfusion-concept-1", "base_digest": "b" * 64, "metric_digest": "c" * 64, "lock": "local"}
    change(tensors, metadata)
    return safetensors.torch.save(tensors, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: t.pop("embedding"), "holds"),
        (lambda t, m: t.update(extra=torch.zeros(1)), "holds"),
        (lambda t, m: t.update(embedding=torch.zeros(5).half()), "shape"),
        (lambda t, m: t.update(embedding=torch.zeros(768, dtype=torch.int32)), "int32"),
        (lambda t, m: t["embedding"].fill_(float("nan")), "not finite"),
        (lambda t, m: t["value_target"].fill_(float("inf")), "not finite"),
        (lambda t, m: m.update(format="other"), "has the format .other., expected .perfusion-concept-1."),
        (lambda t, m: m.update(lock="trained"), "holds"),
        (lambda t, m: m.update(loss="nan"), "loss is 'nan', not a finite number"),
        (lambda t, m: m.update(loss="0.1; rm"), "loss is '0.1; rm', not a finite number"),
    ],
)
def test_a_tampered_file_is_refused(change, message):
    with pytest.raises(ConceptFileError, match=message):
        read(tampered(change))


def test_lying_headers_are_refused_without_allocating():
    data = write_concept(concept())
    for bad in (b"", b"\x00" * 7, struct.pack("<Q", 1 << 40) + data[8:], struct.pack("<Q", 1 << 21) + b" " * (1 << 22)):
        with pytest.raises(ConceptFileError):
            read(bad)
    header = json.dumps({"__metadata__": ["a"]}).encode()
    with pytest.raises(ConceptFileError, match="metadata"):
        read(struct.pack("<Q", len(header)) + header)


@settings(max_examples=80)
@given(cut=st.integers(0, 30_000), flip=st.integers(0, 30_000))
def test_damage_never_passes_as_anything_but_an_error_or_a_finite_concept(cut, flip):
    data = bytearray(write_concept(concept()))
    with pytest.raises(ConceptFileError):
        read(bytes(data[:cut]))
    data[flip] ^= 0xFF
    try:
        survived = read(bytes(data))
    except ConceptFileError:
        return
    assert all(bool(torch.isfinite(tensor).all()) for tensor in survived.tensors().values())


# Differences, which also fit siblings of the base model

SDXL = {"embedding_width": 2048, "text_width": 2048, "value_width": 83_200}


def shared(concept, **changes):
    return dataclasses.replace(concept, text_digest="t" * 64, **changes)


@pytest.mark.parametrize(
    ("sizes", "most", "packed_most"), [(SD15, 32_768, 20_000), (SDXL, 184_000, 100_000)], ids=["SD 1.5", "SDXL"]
)
def test_sizes_of_files_with_differences(sizes, most, packed_most):
    one = shared(concept(**sizes))
    assert len(write_concept(one)) <= most
    assert len(write_concept(one, packed=True)) <= packed_most


@given(
    st.integers(1, 700),
    st.floats(-6, 4),
    st.integers(0, 2**20),
    st.sampled_from(["normal", "sparse", "heavy", "zero"]),
)
@settings(max_examples=60, deadline=None)
def test_a_packed_difference_is_within_half_a_step(width, exponent, seed, kind):
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(width, generator=g) * 10**exponent
    if kind == "sparse":
        values *= torch.rand(width, generator=g) < 0.05
    elif kind == "heavy":
        values = values.clamp(-50_000, 50_000) ** 3 / max(1.0, float(values.abs().max()) ** 2)
    elif kind == "zero":
        values *= 0
    sizes = {"embedding_width": 4, "text_width": 4, "value_width": width}
    one = shared(concept(**sizes), value_target=values)
    again = read(write_concept(one, packed=True), **sizes)
    for place in range(0, width, 128):
        block, found = values[place : place + 128], again.value_target[place : place + 128]
        # The scale is a float16, which is coarse near zero.
        step = max(float(block.abs().max()) / 127 * 1.001, 2.0**-24)
        assert (block - found).abs().max() <= step / 2 * 1.01 + 1e-9


def test_packing_changes_the_edit_by_less_than_one_percent():
    one = shared(concept(**SDXL))
    again = read(write_concept(one, packed=True), **SDXL)
    share = float((again.value_target - one.value_target).norm() / one.value_target.norm())
    assert share < 0.01
    assert write_concept(again, packed=True) == write_concept(one, packed=True)


def test_only_differences_are_packed():
    with pytest.raises(ValueError, match="only differences"):
        write_concept(concept(), packed=True)


@pytest.mark.parametrize("packed", [False, True])
def test_a_sibling_with_the_same_text_encoders_accepts_a_difference(packed):
    one = shared(concept())
    data = write_concept(one, packed=packed)
    again = read(data, base_digest="e" * 64, text_digest="t" * 64)
    assert (again.base_digest, again.text_digest) == ("b" * 64, "t" * 64)
    with pytest.raises(ConceptFileError, match="another base model"):
        read(data, base_digest="e" * 64, text_digest="u" * 64)
    with pytest.raises(ConceptFileError, match="another base model"):
        read(data, base_digest="e" * 64)
    with pytest.raises(ConceptFileError, match="another metric"):
        read(data, base_digest="e" * 64, metric_digest="m" * 64, text_digest="t" * 64)


def test_a_sibling_refuses_targets_and_trained_keys():
    with pytest.raises(ConceptFileError, match="another base model"):
        read(write_concept(concept()), base_digest="e" * 64, text_digest="t" * 64)
    trained = write_concept(shared(concept("trained")))
    assert read(trained, text_digest="t" * 64).lock == "trained"
    with pytest.raises(ConceptFileError, match="another base model"):
        read(trained, base_digest="e" * 64, text_digest="t" * 64)


def test_a_difference_is_completed_by_the_denoiser_at_hand():
    weight = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    sizes = {"embedding_width": 4, "text_width": 4, "value_width": 8}
    absolute = concept(**sizes)
    one = shared(absolute, value_target=absolute.value_target - weight[8:] @ absolute.superclass_input)
    torch.testing.assert_close(one.outputs(KeyValueStack(weight, (8,))), absolute.outputs(KeyValueStack(weight, (8,))))
    other = KeyValueStack(weight + 1, (8,))
    moved = one.outputs(other)[8:] - absolute.value_target
    torch.testing.assert_close(moved, torch.ones(8, 4) @ absolute.superclass_input)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tensors: tensors.pop("value_difference_scale"),
        lambda tensors: tensors.update(value_difference_scale=tensors["value_difference_scale"][:-1]),
        lambda tensors: tensors.update(value_difference_scale=tensors["value_difference_scale"] * torch.nan),
        lambda tensors: tensors.update(value_difference=tensors["value_difference"][:-1]),
        lambda tensors: tensors.update(value_difference=tensors["value_difference"].half()),
        lambda tensors: tensors.update(embedding_scale=tensors["value_difference_scale"].clone()),
    ],
)
def test_damaged_packed_files_are_refused(spoil):
    metadata, tensors = tensor_file.read(write_concept(shared(concept()), packed=True), "perfusion-concept-2")
    spoil(tensors)
    with pytest.raises(ConceptFileError):
        read(tensor_file.write(tensors, metadata))
    with pytest.raises(ConceptFileError, match="does not name its text encoders"):
        read(tensor_file.write(tensors, {name: text for name, text in metadata.items() if name != "text_digest"}))


def test_the_gate_is_part_of_the_format():
    for one in (concept(), shared(concept())):
        linear = dataclasses.replace(one, gate="linear")
        metadata, _ = tensor_file.read(write_concept(linear), "perfusion-linear-1", "perfusion-linear-2")
        # An earlier version, which would draw it with a sigmoid, refuses the format.
        assert metadata["format"] not in ("perfusion-concept-1", "perfusion-offset-1")
        assert read(write_concept(linear)).gate == "linear"
        assert read(write_concept(one)).gate == "sigmoid"
