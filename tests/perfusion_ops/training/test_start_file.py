"""A word embedding of textual inversion as the start of a training: every form of file, and what is refused."""

import copy
import io
import os
import pickle
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

import perfusion_ops
from perfusion_ops.base.folder import describe, embedding_widths
from perfusion_ops.config import TrainingConfig
from perfusion_ops.export.lora import embedding_file
from perfusion_ops.mini import base_folder
from perfusion_ops.training.checkpoint import read_checkpoint, restore_moments, write_checkpoint
from perfusion_ops.training.examples import make_example
from perfusion_ops.training.start_file import MOST_BYTES, StartFileError, read_start
from perfusion_ops.training.state import start
from perfusion_ops.training.trainer import Trainer
from tests.support.tiny_base import TEMPLATES, random_metric, small_base
from tests.support.tiny_pixart import pixart_folder
from tests.support.tiny_xl import WIDTH, xl_base, xl_folder

NAMES = ("clip_l", "clip_g")
RAN = Path(tempfile.gettempdir()) / f"perfusion-ran-{os.getpid()}"


def vector(width, seed=0, dtype=torch.float32):
    return torch.randn(width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def saved(tensors):
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def a1111(tensor, name="*"):
    return saved(
        {
            "string_to_token": {name: 265},
            "string_to_param": {name: nn.Parameter(tensor)},
            "name": "mug",
            "step": 1000,
            "sd_checkpoint": None,
        }
    )


FORMS = {
    "diffusers": lambda v: safetensors.torch.save({"<mug>": v}),
    "diffusers, one row": lambda v: safetensors.torch.save({"<mug>": v[None]}),
    "diffusers, .bin": lambda v: saved({"<mug>": v}),
    "kohya": lambda v: safetensors.torch.save({"emb_params": v[None]}, {"ss_steps": "1000"}),
    "kohya, flat": lambda v: safetensors.torch.save({"emb_params": v}),
    "emb_params beside others": lambda v: saved({"emb_params": v[None], "step": 7}),
    "A1111": lambda v: a1111(v[None]),
    "A1111, half": lambda v: a1111(v.half()[None]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_one_text_encoder_is_read(form):
    v = vector(24).half().float()  # exact in half precision
    found = read_start(FORMS[form](v), (24,), ("emb_params",))
    assert found.dtype == torch.float32
    assert torch.equal(found, v)
    assert torch.equal(read_start(FORMS[form](v), (24,), ()), v)  # a family that other programs do not know


@pytest.mark.parametrize("write", [safetensors.torch.save, saved])
def test_the_form_of_several_text_encoders_is_read_in_the_order_of_the_encoders(write):
    first, second = vector(24), vector(32, 1, torch.bfloat16)
    data = write({"clip_g": second[None], "clip_l": first[None]})
    assert torch.equal(read_start(data, (24, 32), NAMES), torch.cat([first, second.float()]))


class _Runs:
    """Pickles to a call of a function."""

    def __reduce__(self):
        return os.mkdir, (str(RAN),)


def bomb():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", b"\0" * (8 * MOST_BYTES))
    return buffer.getvalue()


V = vector(24)
REFUSED = {
    "several vectors": (safetensors.torch.save({"emb_params": torch.stack([V, V, V])}), "holds 3 vectors in 'emb_para"),
    "several of A1111": (a1111(torch.stack([V, V])), "holds 2 vectors in '\\*'"),
    "several names": (safetensors.torch.save({"<m>": V, "<m>_1": V.clone()}), "holds <m>, <m>_1, and not one word"),
    "another width": (saved({"<mug>": vector(32)}), "holds 32 numbers in '<mug>', and words of the base model have 24"),
    "three dimensions": (saved({"<mug>": V[None, None]}), "holds 1 x 1 x 24 numbers"),
    "no dimension": (saved({"<mug>": torch.tensor(1.0)}), "holds no numbers in"),
    "of SDXL": (safetensors.torch.save({"clip_l": V, "clip_g": vector(32)}), "base model with one text encoder"),
    "whole numbers": (saved({"<mug>": torch.ones(24, dtype=torch.int64)}), "no tensor of numbers"),
    "no tensor": (saved({"<mug>": "text"}), "no tensor of numbers"),
    "sparse": (saved({"<mug>": V.to_sparse()}), "no tensor of numbers"),
    "empty of A1111": (saved({"string_to_param": {}}), "not one word embedding"),
    "no table": (saved([V]), "holds no named tensors"),
    "not finite": (saved({"<mug>": torch.where(V > 1, torch.inf, V)}), "not finite"),
    "too large": (b"\0" * (MOST_BYTES + 1), "has 1,048,577 bytes, and a word embedding has at most 1,048,576"),
    "unpacks too large": (bomb(), "unpacks to 8,388,608 bytes"),
    "code": (saved({"<mug>": _Runs()}), "cannot be loaded without running code"),
    "a module": (saved({"<mug>": nn.ParameterDict({"*": nn.Parameter(V)})}), "cannot be loaded without running code"),
    "a pickle": (pickle.dumps({"<mug>": [1.0]}), "saved by PyTorch before 1.6"),
    "text": (b"<mug>", "neither a safetensors file nor one of torch.save"),
    "nothing": (b"", "neither a safetensors file nor one of torch.save"),
    "cut off": (safetensors.torch.save({"<mug>": V})[:-4], "is damaged"),
    "a cut zip": (saved({"<mug>": V})[:-30], "is damaged"),
    "a damaged zip": (saved({"<mug>": V}).replace(b"data.pkl", b"data.pk_"), "is damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_word_of_the_base_model_is_refused_with_a_sentence(case):
    data, message = REFUSED[case]
    with pytest.raises(StartFileError, match=message):
        read_start(data, (24,), ("emb_params",))
    assert not RAN.exists()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"emb_params": V},
            r"holds emb_params, and the base model has 2 text encoders: give a file with 'clip_l' \(24\)",
        ),
        ({"clip_l": V}, "2 text encoders"),
        ({"clip_l": V, "clip_g": V.clone()}, "holds 24 numbers in 'clip_g', and words of the base model have 32"),
        ({"clip_l": V, "clip_g": torch.zeros(2, 32)}, "holds 2 vectors in 'clip_g'"),
    ],
)
def test_what_is_no_word_of_several_text_encoders_is_refused(tensors, message):
    with pytest.raises(StartFileError, match=message):
        read_start(safetensors.torch.save(tensors), (24, 32), NAMES)


def test_widths_of_a_folder_are_those_of_the_loaded_model(tmp_path):
    xl_folder(tmp_path / "xl")
    pixart_folder(tmp_path / "pixart")
    for folder in (tmp_path / "xl", tmp_path / "pixart", base_folder()):
        assert embedding_widths(describe(folder)) == perfusion_ops.load_base(folder).texts.widths


# Training


def example(base, seed=0, **config):
    pixels = torch.randint(0, 256, (20, 24, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    settings = TrainingConfig(steps=4, batch=2).overridden(config)
    return make_example(base, "mug", [(Image.fromarray(pixels.numpy()), None)], settings)


@pytest.fixture(scope="module")
def base():
    return small_base()


@pytest.mark.parametrize("recipe", ["paper", "offset"])
def test_the_word_starts_at_the_file_s_vector(base, recipe):
    plain = example(base, recipe=recipe)
    begun = replace(plain, start=vector(24, 5))
    one, other = start(base, begun), start(base, plain)
    assert torch.equal(one.embedding.detach(), vector(24, 5))
    assert one.embedding.requires_grad
    assert not torch.equal(one.embedding, other.embedding)
    assert torch.equal(one.superclass_input, other.superclass_input)
    assert torch.equal(one.generator.get_state(), other.generator.get_state())
    same = recipe == "offset"
    for name in ("value_target", "target_input"):
        assert torch.equal(getattr(one, name), getattr(other, name)) == same
    one.embedding.data.add_(1)  # training does not reach into the example
    assert torch.equal(begun.start, vector(24, 5))


def test_the_target_starts_at_the_encoding_of_the_word_and_keys_at_the_superclass(base):
    """Beside the text encoder itself, one template after the other."""
    v = vector(24, 5)
    begun = replace(example(base, lock="trained"), start=v)
    state, other = start(base, begun), start(base, replace(begun, start=None))
    [model] = base.texts.models
    encoder, found, word = copy.deepcopy(model.encoder), [], 300
    with torch.no_grad():
        encoder.get_input_embeddings().weight[word] = v
        for template in TEMPLATES:
            before, after = (model.tokenizer(part)["input_ids"][1:-1] for part in template.split("{}"))
            ids = [model.tokenizer.bos_token_id, *before, word, *after, model.tokenizer.eos_token_id]
            found.append(encoder(torch.tensor([ids])).last_hidden_state[0, 1 + len(before)])
    wanted = torch.stack(found).mean(0)
    torch.testing.assert_close(state.target_input, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state.value_target.detach(), base.stack.values @ wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(state.key_target, other.key_target)


@pytest.mark.parametrize("recipe", ["paper", "offset"])
def test_a_training_from_a_start_differs_and_equals_itself_in_a_group_and_resumed(base, recipe):
    metric = random_metric(24)
    plain = example(base, recipe=recipe)
    begun = replace(plain, start=vector(24, 5))
    group = Trainer(base, metric, [plain, begun])
    group.run()
    alone = Trainer(base, metric, [begun])
    alone.run()
    for name, parameter in alone.states[0].parameters().items():
        torch.testing.assert_close(group.states[1].parameters()[name], parameter, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(group.states[0].parameters()[name], parameter, rtol=1e-3, atol=1e-4)
    half = Trainer(base, metric, [begun])
    half.advance(2)
    state, moments = read_checkpoint(write_checkpoint(half.states[0], half.optimizer), start(base, begun))
    resumed = Trainer(base, metric, [begun], states=[state])
    restore_moments(resumed.optimizer, state, moments)
    resumed.run()
    for name, parameter in alone.states[0].parameters().items():
        assert torch.equal(resumed.states[0].parameters()[name], parameter)


def test_train_concept_takes_a_file_or_its_contents(tmp_path):
    base = xl_base(tmp_path / "xl")
    metric = random_metric(WIDTH, base_digest=base.folder.metric_digest)
    photo = Image.new("RGB", (16, 16), "red")
    tensors = {"clip_l": vector(24, 1)[None], "clip_g": vector(32, 2)[None]}
    safetensors.torch.save_file(tensors, tmp_path / "mug.safetensors")
    settings = {"steps": 1, "batch": 1, "lr_embedding": 1e-6}
    plain = perfusion_ops.train_concept(base, metric, "mug", [photo], **settings)
    named = perfusion_ops.train_concept(base, metric, "mug", [photo], start=tmp_path / "mug.safetensors", **settings)
    given = perfusion_ops.train_concept(base, metric, "mug", [photo], start=safetensors.torch.save(tensors), **settings)
    wanted = torch.cat([vector(24, 1), vector(32, 2)])
    torch.testing.assert_close(named.embedding, wanted, rtol=0, atol=2e-6)
    assert torch.equal(named.embedding, given.embedding)
    assert not torch.allclose(plain.embedding, wanted, atol=0.1)
    with pytest.raises(StartFileError, match="start: the file holds <mug>, and the base model has 2 text encoders"):
        perfusion_ops.train_concept(
            base, metric, "mug", [photo], start=safetensors.torch.save({"<mug>": vector(56)}), **settings
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_word_of_an_export_is_read_again(tmp_path, dtype):
    """The file that `perfusion export --to lora` writes for other programs."""
    for base in (small_base(), xl_base(tmp_path / "xl")):
        v = vector(base.embedding_width, 3)
        data = embedding_file(base, v, {"modelspec.title": "mug"}, dtype)
        found = read_start(data, base.texts.widths, base.folder.family.word_tensors)
        assert torch.equal(found, v.to(dtype).float())
