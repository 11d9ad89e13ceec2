"""The concept file: its size at Stable Diffusion 1.5's widths, what it binds to, and all the files it refuses."""

import dataclasses
import json
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perfusion_ops.concept import ConceptFileError, GatedConcept, read_concept, write_concept

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
