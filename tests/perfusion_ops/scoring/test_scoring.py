"""Scorers against naive references in float64, on real folders made on the spot; and every folder that is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    AutoTokenizer,
    CLIPModel,
    Dinov2Model,
    DINOv3ViTModel,
    ResNetModel,
    SiglipModel,
    ViTModel,
)

from perfusion_ops.mini.world.contexts import named_context
from perfusion_ops.mini.world.vocabulary import BACKGROUNDS, CATEGORIES, phrases
from perfusion_ops.scoring.choice import choose_scorers
from perfusion_ops.scoring.folder import ScorerError, describe_scorer
from perfusion_ops.scoring.models import DualScorer, ImageScorer, LabelReader, load_scorers
from perfusion_ops.text import PromptTooLongError
from tests.support import scorer_folders as small_scorers

DUALS = {"dual": CLIPModel, "siglip": SiglipModel}
TRANSFORMERS = {
    "dino": (Dinov2Model, {}),
    "dinov3": (DINOv3ViTModel, {}),
    "vit": (ViTModel, {"add_pooling_layer": False}),
}
SIZES = [(64, 64), (48, 80), (80, 48), (33, 32), (200, 41)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One folder of each kind."""
    home = tmp_path_factory.mktemp("scorers")
    small_scorers.all_three(home)
    small_scorers.dino(home / "dino")
    small_scorers.dinov3(home / "dinov3")
    small_scorers.vit(home / "vit")
    small_scorers.siglip(home / "siglip")
    return home


@pytest.fixture
def copy(home, tmp_path):
    """A copy of a folder that a test may damage."""

    def make(name):
        return Path(shutil.copytree(home / name, tmp_path / name))

    return make


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pictures():
    return [noise(height, width, seed) for seed, (height, width) in enumerate(SIZES)]


def prepared(folder, picture):
    """A picture's pixel values by the folder's preprocessor_config.json, written down in float64."""
    config = json.loads((folder / "preprocessor_config.json").read_text())
    height, width = picture.shape[:2]
    if "shortest_edge" in config["size"]:
        edge = config["size"]["shortest_edge"]
        size = (edge, int(edge * height / width)) if width <= height else (int(edge * width / height), edge)
    else:
        size = config["size"]["width"], config["size"]["height"]
    resized = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling(config["resample"])))
    if config.get("do_center_crop"):
        down, right = config["crop_size"]["height"], config["crop_size"]["width"]
        top, left = (resized.shape[0] - down) // 2, (resized.shape[1] - right) // 2
        resized = resized[top : top + down, left : left + right]
    values = resized.astype(np.float64) / 255
    values = (values - np.array(config["image_mean"])) / np.array(config["image_std"])
    return torch.from_numpy(values.transpose(2, 0, 1)[None])


def unit(vector):
    vector = vector.detach().double().numpy()
    return vector / np.linalg.norm(vector, axis=1, keepdims=True)


def features(home, name, picture):
    """The embedding straight from transformers, in float64."""
    folder = home / name
    values = prepared(folder, picture)
    if name in DUALS:
        return unit(DUALS[name].from_pretrained(folder).double().eval().get_image_features(values).pooler_output)
    if name == "identity":
        return unit(ResNetModel.from_pretrained(folder).double().eval()(values).pooler_output.flatten(1))
    loader, options = TRANSFORMERS[name]
    return unit(loader.from_pretrained(folder, **options).double().eval()(values).last_hidden_state[:, 0])


@pytest.mark.parametrize("name", ["dual", "siglip", "identity", "dino", "dinov3", "vit"])
def test_embeddings_are_those_of_a_naive_reference_in_float64(home, name):
    scorer = (DualScorer if name in DUALS else ImageScorer)(describe_scorer(home / name))
    found = scorer.embed_images(pictures())
    assert found.dtype == np.float32
    expected = np.concatenate([features(home, name, picture) for picture in pictures()])
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-2, "different pictures must differ by far more than the tolerance"


@pytest.mark.parametrize("name", DUALS)
def test_a_cosine_of_picture_and_text_by_hand(home, name):
    scorer = DualScorer(describe_scorer(home / name))
    text = "a photo of a red mug on the beach"
    # SigLIP reads its last position, so it was trained on texts padded to the full length; CLIP may have them short.
    padding = {"padding": "max_length", "max_length": 16} if name == "siglip" else {}
    ids = AutoTokenizer.from_pretrained(home / name)(text, return_tensors="pt", **padding)["input_ids"]
    output = DUALS[name].from_pretrained(home / name).double().eval().get_text_features(ids)
    expected = (unit(output.pooler_output) @ features(home, name, noise(64, 64)).T).item()
    found = scorer.embed_texts(["something else", text])[1] @ scorer.embed_images([noise(64, 64)])[0]
    assert found == pytest.approx(expected, abs=2e-5)


def test_a_picture_s_embedding_depends_on_nothing_but_the_picture(home):
    scorer = DualScorer(describe_scorer(home / "dual"))
    together = scorer.embed_images(pictures())
    alone = np.concatenate([scorer.embed_images([picture]) for picture in pictures()])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(scorer.embed_images([Image.fromarray(each) for each in pictures()]), together, atol=1e-6)
    batch = np.stack([noise(64, 64, seed) for seed in range(3)])
    np.testing.assert_allclose(scorer.embed_images(batch), scorer.embed_images(list(batch)), atol=1e-6)
    transparent = Image.fromarray(np.dstack([noise(64, 64), np.full((64, 64), 9, np.uint8)]), "RGBA")
    np.testing.assert_allclose(scorer.embed_images([transparent]), scorer.embed_images([noise(64, 64)]), atol=1e-6)


def test_half_precision_weights_are_computed_in_float32(tmp_path):
    half = DualScorer(describe_scorer(small_scorers.dual(tmp_path / "half", dtype=torch.float16)))
    model = CLIPModel.from_pretrained(tmp_path / "half", dtype=torch.float16)
    assert next(model.parameters()).dtype == torch.float16, "the folder must hold half precision for this to say much"
    values = prepared(tmp_path / "half", noise(64, 64))
    expected = unit(model.double().eval().get_image_features(values).pooler_output)
    np.testing.assert_allclose(half.embed_images([noise(64, 64)]), expected, atol=2e-5)


def test_a_reader_s_heads_are_read_from_its_labels(home):
    reader = LabelReader(describe_scorer(home / "reader"))
    assert reader.heads == {
        "class": ("mug", "bag"),
        "context": ("beach", "snow", "studio-red"),
        "color": ("red", "blue"),
        "pattern": ("plain", "striped"),
        "angle": ("front", "above"),
    }
    found = reader.read(pictures())
    model = AutoModelForImageClassification.from_pretrained(home / "reader").double().eval()
    values = torch.cat([prepared(home / "reader", picture) for picture in pictures()])
    logits = model(values).logits.detach().numpy()
    places = {label: number for number, label in enumerate(small_scorers.LABELS)}
    for head, labels in reader.heads.items():
        own = logits[:, [places[f"{head}:{label}"] for label in labels]]
        exponents = np.exp(own)
        expected = 1 / (1 + 1 / exponents) if head == "class" else exponents / exponents.sum(1, keepdims=True)
        np.testing.assert_allclose(found[head], expected, atol=2e-5)


def test_texts_that_do_not_fit_are_refused_and_never_cut(home):
    scorer = DualScorer(describe_scorer(home / "dual"))
    longest = " ".join(["mug"] * 30)
    scorer.check_text(longest)
    assert scorer.embed_texts([longest]).shape == (1, 16)
    with pytest.raises(PromptTooLongError, match=r"has 33 tokens with start and end, the scorer dual\(clip\) takes 32"):
        scorer.embed_texts(["short", longest + " mug"])


@pytest.mark.parametrize(
    "bad",
    [[], [np.zeros((4, 4), np.uint8)], [np.zeros((4, 4, 3), np.float32)], [np.zeros((3, 8, 8), np.uint8)]],
    ids=["none", "grey", "float", "channels first"],
)
def test_a_value_that_is_not_a_picture_is_refused(home, bad):
    with pytest.raises(ValueError, match="give"):
        ImageScorer(describe_scorer(home / "identity")).embed_images(bad)


# Folders


def edit(path, **changes):
    values = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in {**values, **changes}.items() if value is not None}))


def test_kinds_are_told_from_the_config(home):
    kinds = {name: describe_scorer(home / name) for name in ("dual", "identity", "reader", "dino", "vit")}
    assert {name: folder.kind for name, folder in kinds.items()} == {
        "dual": "dual",
        "identity": "image",
        "reader": "reader",
        "dino": "image",
        "vit": "image",
    }
    assert kinds["dino"].name == "dino(dinov2)"


def remove(name):
    return lambda folder: (folder / name).unlink()


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def damaged(folder):
    (folder / "model.safetensors").write_bytes(b"no tensors")


def labelled(*labels):
    return lambda folder: edit(folder / "config.json", id2label={str(number): it for number, it in enumerate(labels)})


def uncropped(folder):
    edit(folder / "preprocessor_config.json", do_center_crop=False)


def not_finite(folder):
    model = ResNetModel.from_pretrained(folder)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("dual", shutil.rmtree, "there is no folder .*: give 'mini' or a local folder"),
        ("dual", remove("config.json"), "it has no config.json; give a folder that save_pretrained wrote"),
        (
            "dual",
            lambda folder: (folder / "config.json").write_text("[1]"),
            "config.json cannot be read [(]it is not an obj",
        ),
        ("dual", lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        ("dual", remove("tokenizer.json"), "has no tokenizer"),
        ("dual", remove("preprocessor_config.json"), "no preprocessor_config.json; save the model's image processor"),
        ("identity", remove("model.safetensors"), "has no weights at all: save the model as safetensors"),
        ("identity", pickled, "has only pytorch_model.bin, which can run code when it is read"),
        (
            "identity",
            lambda folder: edit(folder / "config.json", model_type="bert"),
            "type 'bert', which is not a scorer",
        ),
        ("identity", lambda folder: edit(folder / "config.json", architectures=["ResNetBackbone"]), "not a scorer"),
        ("identity", lambda folder: edit(folder / "config.json", architectures=None), "holds None of type 'resnet'"),
        ("reader", labelled("mug", "beach"), "label 0 of .* is 'mug': number the labels from 0 and write each once as"),
        ("reader", labelled("class:mug", "class:mug"), "label 1 of .* is 'class:mug'"),
        ("reader", labelled("class:"), "label 0"),
        ("reader", lambda folder: edit(folder / "config.json", id2label={"1": "class:mug"}), "label 0 of .* is None"),
        ("reader", lambda folder: edit(folder / "config.json", id2label=None), "a classifier without labels"),
    ],
)
def test_a_folder_that_is_not_a_scorer_is_refused_with_a_message(copy, name, spoil, message):
    folder = copy(name)
    spoil(folder)
    with pytest.raises(ScorerError, match=message):
        describe_scorer(folder)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("identity", damaged, "cannot be used as a scorer"),
        ("identity", uncropped, "leaves pictures at different sizes: let it crop"),
        ("identity", not_finite, "numbers that are not finite: its weights are damaged"),
        (
            "identity",
            lambda folder: edit(folder / "config.json", depths=[2, 2]),
            "lack .* and .* more of what its config",
        ),
        (
            "dual",
            lambda folder: edit(folder / "preprocessor_config.json", crop_size={"height": 64, "width": 64}),
            "scorer",
        ),
        ("dual", lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be used as a scorer"),
        ("reader", labelled("class:mug", "class:bag"), "cannot be used as a scorer"),
    ],
)
def test_a_folder_that_cannot_score_is_refused_when_it_loads(copy, name, spoil, message):
    folder = copy(name)
    spoil(folder)
    purpose = {"identity": "image", "dual": "text", "reader": "reader"}[name]
    choice = choose_scorers(**{purpose: str(folder)})
    with pytest.raises(ScorerError, match=message):
        load_scorers(choice, device="cpu")


def test_digests_are_of_contents_and_of_nothing_else(home, copy):
    folder, before = copy("identity"), describe_scorer(home / "identity").digest
    assert describe_scorer(folder).digest == before
    (folder / "README.md").write_text("hello")
    assert describe_scorer(folder).digest == before
    edit(folder / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    changed = describe_scorer(folder).digest
    assert changed != before
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert describe_scorer(folder).digest not in (before, changed)


def test_chosen_scorers_have_documented_names(home):
    dual, identity, reader = (str(home / name) for name in ("dual", "identity", "reader"))
    whole = choose_scorers(text=dual, image=identity, reader=reader)
    assert whole.name == "text=dual(clip) image=identity(resnet) reader=reader(resnet)"
    one = choose_scorers(dual)
    assert (one.name, one.reader) == ("text=dual(clip) image=dual(clip)", None)
    assert choose_scorers(identity).digest == choose_scorers(image=identity).digest
    digests = {choice.digest for choice in (whole, one, choose_scorers(text=dual), choose_scorers(image=dual))}
    assert len(digests) == 4, "what a folder is used for is part of what the scores are"
    scorers = load_scorers(one, device="cpu")
    assert scorers.text is scorers.image
    assert scorers.reader is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scorer": "mini", "text": "dual"}, "the scorer 'mini' is for all purposes"),
        ({"text": "identity"}, "cannot be the text scorer: give a folder that compares pictures with texts"),
        ({"image": "reader"}, "cannot be the image scorer: give a folder that embeds pictures"),
        ({"reader": "dual"}, "cannot be the reader scorer: give a folder that labels pictures"),
    ],
)
def test_a_folder_is_not_taken_for_what_it_is_not(home, given, message):
    given = {name: value if value == "mini" else str(home / value) for name, value in given.items()}
    with pytest.raises(ScorerError, match=message):
        choose_scorers(**given)


# Contexts


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_phrase_names_its_own_context(background):
    for phrase in phrases(background):
        for words in (f"a photo of a {{mug-1}} {phrase}", f"{phrase.upper()}, a mug", phrase.replace(" ", "  ")):
            assert named_context(words) == background


@settings(max_examples=60)
@given(st.data())
def test_a_prompt_with_two_contexts_or_none_names_no_context(data):
    first, second = data.draw(st.lists(st.sampled_from(BACKGROUNDS), min_size=2, max_size=2, unique=True))
    thing = data.draw(st.sampled_from(CATEGORIES))
    said = [data.draw(st.sampled_from(phrases(each))) for each in (first, second)]
    assert named_context(f"a {thing} {said[0]} and {said[1]}") is None
    assert named_context(f"a {thing} {said[0]}, yes {said[0]}") == first
    assert named_context(f"a photo of a {thing}") is None


def test_text_in_braces_or_inside_a_word_names_no_context():
    assert named_context("a photo of {underwater}") is None
    assert named_context("a photo of {underwater-1} on the beach") == "beach"
    assert named_context("an underwaterish mug") is None
