"""Concepts, metrics and checkpoints: their bytes never change, and none of their readers trusts a header."""

import hashlib
import json
import struct

import pytest
import torch
from torch import nn

from perfusion_ops.concept import GatedConcept
from perfusion_ops.concept_file import ConceptFileError, read_concept, write_concept
from perfusion_ops.metric import MetricError, metric_from_moment, read_metric
from perfusion_ops.tensors import tensor_file
from perfusion_ops.tensors.tensor_file import TensorFileError
from perfusion_ops.training.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from perfusion_ops.training.state import ConceptState

BASE, METRIC, KEY = "b" * 64, "c" * 64, "k" * 64


def ramp(count):
    return torch.arange(count, dtype=torch.float32) / 64 - 1


def concept(lock="local", loss=None):
    return GatedConcept(
        superclass='théière "x"',
        embedding=ramp(16),
        target_input=ramp(8),
        superclass_input=ramp(8) + 1,
        value_target=ramp(12),
        key_target=ramp(12) * 2 if lock == "trained" else None,
        lock=lock,
        base_digest=BASE,
        metric_digest=METRIC,
        loss=loss,
    )


def concept_from(data):
    return read_concept(
        data, base_digest=BASE, metric_digest=METRIC, embedding_width=16, text_width=8, value_width=12, key=KEY
    )


def metric_bytes():
    moment = torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64))
    return metric_from_moment(moment, ridge=1e-7, base_digest=BASE, held_out=0.995).to_bytes()


def state():
    return ConceptState(
        embedding=nn.Parameter(ramp(16)),
        value_target=nn.Parameter(ramp(12)),
        key_target=None,
        target_input=ramp(8),
        superclass_input=ramp(8),
        generator=torch.Generator().manual_seed(7),
        step=3,
        losses=[0.5, 0.25],
    )


def checkpoint_bytes():
    one = state()
    optimizer = torch.optim.Adam(one.parameters().values(), lr=0.1)
    for parameter in one.parameters().values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return write_checkpoint(one, optimizer)


# Each kind of file: its bytes, its reader, and the only error that the reader may raise.
KINDS = {
    "concept": (lambda: write_concept(concept(), key=KEY), concept_from, ConceptFileError),
    "metric": (metric_bytes, lambda data: read_metric(data, base_digest=BASE), MetricError),
    "checkpoint": (checkpoint_bytes, lambda data: read_checkpoint(data, state()), CheckpointError),
}


@pytest.mark.parametrize(
    ("make", "sha256"),
    [
        # Earlier versions wrote metrics and checkpoints with metadata in a random order; the digests are of this one.
        (
            lambda: write_concept(concept(), key=KEY),
            "0493f3a7984c19487d1390270257d69f284ae37fe45e02d81c7dc542d80fcaf9",
        ),
        (
            lambda: write_concept(concept("trained", 1 / 3)),
            "1d05a89edcddc79766dcefc1d46ffbdfa29cb696382e76c5776442f983bfc4b1",
        ),
        (
            lambda: write_concept(concept(loss=0.5), dtype=torch.float32),
            "4155ad831f3cb2f2812b285f890d7290fe8af73e5c7c59ec9ae1d5ad10321634",
        ),
        (metric_bytes, "846cfb763ef32b67bd42cceb05ac91abd0c56a636c4bad532d79790e3fab7076"),
        (checkpoint_bytes, "c8691a62f3c9d11cf1aac83367a20e98c75c28feb1243f93199d47048227df24"),
    ],
    ids=["concept", "trained keys", "float32", "metric", "checkpoint"],
)
def test_bytes_are_those_of_earlier_versions(make, sha256):
    assert hashlib.sha256(make()).hexdigest() == sha256


@pytest.mark.parametrize("kind", KINDS)
def test_whole_file_is_read(kind):
    make, read, _ = KINDS[kind]
    read(make())


def split(data):
    """The header as JSON, and the bytes behind it."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header, rest):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def with_metadata(change):
    def damage(data):
        header, rest = split(data)
        change(header["__metadata__"])
        return joined(header, rest)

    return damage


def with_tensor(change):
    def damage(data):
        header, rest = split(data)
        name = next(name for name in header if name != "__metadata__")
        change(header, name)
        return joined(header, rest)

    return damage


HOSTILE = {
    "empty": lambda data: b"",
    "seven bytes": lambda data: data[:7],
    "cut in the header": lambda data: data[:60],
    "cut in the tensors": lambda data: data[:-1],
    "bytes behind the tensors": lambda data: data + b"\0",
    "a header of a terabyte": lambda data: struct.pack("<Q", 1 << 40) + data[8:],
    "a header of 2^64 - 1 bytes": lambda data: b"\xff" * 8 + data[8:],
    "a header of 2 MB that is there": lambda data: joined(b" " * (2 << 20), data),
    "no header": lambda data: joined(b"", data),
    "a header that is not UTF-8": lambda data: joined(b"\xff\xfe{}", data),
    "a header that is no JSON": lambda data: joined(b"{", data),
    "a header that is a list": lambda data: joined(b"[]", data),
    "a header that is a number": lambda data: joined(b"7", data),
    "a header nested a million deep": lambda data: joined(b"[" * 1_000_000, data),
    "a whole number of a million digits": lambda data: joined(b'{"__metadata__": ' + b"9" * 1_000_000 + b"}", data),
    "no metadata": lambda data: joined(
        {k: v for k, v in split(data)[0].items() if k != "__metadata__"}, split(data)[1]
    ),
    "metadata that is a list": lambda data: joined({**split(data)[0], "__metadata__": ["format"]}, split(data)[1]),
    "metadata that is null": lambda data: joined({**split(data)[0], "__metadata__": None}, split(data)[1]),
    "metadata with a number": with_metadata(lambda metadata: metadata.update(step=1)),
    "metadata with a list": with_metadata(lambda metadata: metadata.update(format=["perfusion"])),
    "no format": with_metadata(lambda metadata: metadata.pop("format")),
    "another format": with_metadata(lambda metadata: metadata.update(format="perfusion-other-1")),
    "a tensor less": with_tensor(lambda header, name: header.pop(name)),
    "a tensor of another type": with_tensor(lambda header, name: header[name].update(dtype="Q7")),
    "a tensor of negative size": with_tensor(lambda header, name: header[name].update(shape=[-1])),
    "a tensor of 2^63 values": with_tensor(lambda header, name: header[name].update(shape=[1 << 62, 2])),
    "a tensor outside of the file": with_tensor(lambda header, name: header[name].update(data_offsets=[0, 1 << 40])),
    "a tensor that ends before it starts": with_tensor(lambda header, name: header[name].update(data_offsets=[8, 0])),
    "a tensor that is text": with_tensor(lambda header, name: header.update({name: "zeros"})),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("kind", KINDS)
def test_hostile_header_is_an_error_of_the_kind(kind, case):
    make, read, error = KINDS[kind]
    with pytest.raises(error):
        read(HOSTILE[case](make()))


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("metric", {"ridge": "wide"}, "damaged"),
        ("metric", {"ridge": "-1"}, "ridge -1.0"),
        ("metric", {"held_out": "nan"}, "held-out share nan"),
        ("checkpoint", {"step": "first"}, "step or losses"),
        ("checkpoint", {"step": "-1"}, "step is -1"),
        ("checkpoint", {"losses": "[" * 100_000}, "step or losses"),
        ("checkpoint", {"losses": "7"}, "step or losses"),
        ("concept", {"loss": "inf"}, "loss is 'inf'"),
        ("concept", {"format": "perfusion-metric-1"}, "format 'perfusion-metric-1', expected 'perfusion-concept-1'"),
    ],
)
def test_value_in_the_metadata_is_checked(kind, values, message):
    make, read, error = KINDS[kind]
    with pytest.raises(error, match=message):
        read(with_metadata(lambda metadata: metadata.update(values))(make()))


@pytest.mark.parametrize(
    "moment", [torch.ones(3), torch.ones(3, 2), torch.ones(3, 3, dtype=torch.int64), torch.zeros(1, 3, 3)]
)
def test_metric_that_is_no_square_matrix_is_damaged(moment):
    header, _ = split(metric_bytes())
    data = tensor_file.write({"second_moment": moment}, header["__metadata__"])
    with pytest.raises(MetricError, match="not a square matrix"):
        read_metric(data, base_digest=BASE)


def test_checkpoint_with_a_moment_of_another_shape_is_refused():
    metadata, tensors = tensor_file.read(checkpoint_bytes(), "perfusion-checkpoint-1")
    tensors["embedding.exp_avg"] = torch.zeros(17)
    with pytest.raises(CheckpointError, match=r"embedding.exp_avg has the shape \(17,\)"):
        read_checkpoint(tensor_file.write(tensors, metadata), state())


def test_equal_contents_give_equal_bytes_whatever_the_layout_in_memory():
    whole = torch.arange(12.0).reshape(3, 4)
    first = tensor_file.write({"a": whole, "b": whole[0].clone()}, {"format": "f", "text": "ü"})
    again = tensor_file.write({"b": whole[0].clone(), "a": whole.T.contiguous().T}, {"format": "f", "text": "ü"})
    assert first == again
    metadata, tensors = tensor_file.read(first, "f")
    assert metadata == {"format": "f", "text": "ü"}
    assert torch.equal(tensors["a"], whole)
    with pytest.raises(TensorFileError, match="has the format 'f', expected 'g'"):
        tensor_file.read(first, "g")
