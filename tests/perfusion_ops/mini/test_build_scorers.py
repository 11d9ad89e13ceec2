"""The scorers' making, tiny but real: built, trained, stopped, resumed, exported, and loaded as anyone would."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from perfusion_ops.mini.build import dual, identity, reader, scorers
from perfusion_ops.mini.build.pictures import HELD_OUT_INSTANCES, photographed
from perfusion_ops.mini.build.recipe import TINY
from perfusion_ops.mini.build.training.machine import Machine
from perfusion_ops.mini.build.words import write_tokenizer
from perfusion_ops.mini.world.products import BASE_INSTANCES, SCORER_INSTANCES, product
from perfusion_ops.mini.world.scene import photograph, render, sample_scene
from perfusion_ops.mini.world.vocabulary import BACKGROUNDS, CATEGORIES
from perfusion_ops.scoring.choice import choose_scorers
from perfusion_ops.scoring.models import load_scorers

ALL = (reader, identity, dual)
MACHINE = Machine("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A work folder with all three trained to the end of the tiny recipe without a stop."""
    folder = tmp_path_factory.mktemp("work")
    write_tokenizer(folder / "tokenizer")
    for scorer in ALL:
        scorer.fit(MACHINE, TINY, folder, None)
    return folder


@pytest.fixture(scope="module")
def home(work):
    for scorer in ALL:
        scorer.export(TINY, work, work / "scorers" / scorer.NAME)
    return work / "scorers"


def as_image(pixels):
    return torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_scorers_are_trained_on_products_that_the_base_never_sees(work):
    scenes = np.load(work / "scorer_pictures.npy", mmap_mode="r")
    assert scenes.shape == (TINY.scorer_pictures, 64, 64, 3)
    for number in (0, 17, 95):
        scene = sample_scene(number, SCORER_INSTANCES)
        assert all(item.product.instance in SCORER_INSTANCES for item in scene.placed)
        np.testing.assert_array_equal(scenes[number], render(scene).pixels)
    photographs = np.load(work / "scorer_photographs.npy", mmap_mode="r")
    instance, view = photographed(22, SCORER_INSTANCES, scorers.VIEWS)
    item = product(CATEGORIES[instance % len(CATEGORIES)], instance)
    np.testing.assert_array_equal(photographs[22], render(photograph(item, view)).pixels)
    for first, second in ((SCORER_INSTANCES, BASE_INSTANCES), (SCORER_INSTANCES, HELD_OUT_INSTANCES)):
        assert first.stop <= second.start or second.stop <= first.start


@pytest.mark.parametrize("scorer", ALL, ids=lambda scorer: scorer.NAME)
def test_a_training_that_was_stopped_ends_as_one_that_was_not(scorer, work, tmp_path):
    for name in ("tokenizer", "scorer_pictures.npy", "scorer_photographs.npy"):
        (tmp_path / name).symlink_to(work / name)
    checkpoint = tmp_path / f"{scorer.NAME}.safetensors"
    scorer.fit(MACHINE, TINY, tmp_path, 0.0)  # the time is over after the first step
    with safe_open(checkpoint, "pt") as file:
        assert file.metadata()["step"] == "1"
    scorer.fit(MACHINE, TINY, tmp_path, None)
    resumed, undisturbed = load_file(checkpoint), load_file(work / checkpoint.name)
    assert resumed.keys() == undisturbed.keys()
    for key, value in resumed.items():
        assert torch.equal(value, undisturbed[key]), key
    start = scorer.build(TINY, *([] if scorer is not dual else [AutoTokenizer.from_pretrained(work / "tokenizer")]))
    moved = [not torch.equal(value, undisturbed[f"state.{key}"]) for key, value in start.named_parameters()]
    assert all(moved)


def test_exports_are_small_ordinary_folders_that_load_anywhere(home, work):
    for scorer in ALL:
        folder = home / scorer.NAME
        assert not list(folder.glob("*.py"))
        with safe_open(folder / "model.safetensors", "pt") as file:
            kinds = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118 - not a dict
        assert torch.float16 in kinds
        assert kinds <= {torch.float16, torch.int64}  # batch norm counts
        prepared = json.loads((folder / "preprocessor_config.json").read_text())
        assert prepared["size"] == {"height": 64, "width": 64}
        assert prepared["image_mean"] == prepared["image_std"] == [0.5] * 3
    coded = AutoTokenizer.from_pretrained(home / "dual")("a striped mug on the beach")["input_ids"]
    assert coded == AutoTokenizer.from_pretrained(work / "tokenizer")("a striped mug on the beach")["input_ids"]


def test_exports_compute_what_was_trained(home, work):
    pixels = np.load(work / "scorer_photographs.npy", mmap_mode="r")[:8]
    choice = choose_scorers(text=str(home / "dual"), image=str(home / "identity"), reader=str(home / "reader"))
    loaded = load_scorers(choice, device="cpu")
    network = identity.build(TINY)
    mean = load_file(work / "identity.safetensors")
    network.load_state_dict({key: mean[f"mean.{key}"] for key in network.state_dict()})
    with torch.no_grad():
        pooled = network.eval()(as_image(pixels)).pooler_output.flatten(1)
    expected = torch.nn.functional.normalize(pooled, dim=1).numpy()
    np.testing.assert_allclose(loaded.image.embed_images(pixels), expected, atol=2e-3)
    assert loaded.reader.heads == {head: tuple(names) for head, names in reader.HEADS.items()}
    assert loaded.text.embed_texts(["a photo of a mug"]).shape == (1, TINY.dual.width // 2)
    # The caption's vector depends on its last word: the end token is found where padding uses it, too.
    beach, forest = loaded.text.embed_texts(["a mug on the beach", "a mug on the road"])
    assert not np.allclose(beach, forest, atol=1e-4)


def test_export_replaces_what_is_there(work, tmp_path):
    (tmp_path / "old.safetensors").write_text("old")
    reader.export(TINY, work, tmp_path)
    assert AutoModel.from_pretrained(tmp_path).config.model_type == "resnet"
    assert not (tmp_path / "old.safetensors").exists()


def test_the_reader_is_taught_the_scene_and_looks_only_of_a_product_alone():
    scenes = [sample_scene(number, SCORER_INSTANCES).describe() for number in range(300)]
    truth = reader.answers(scenes)
    for row, scene in enumerate(scenes):
        told = {head: int(truth[head][row]) for head in reader.HEADS if head != "class"}
        present = {CATEGORIES[place] for place in truth["class"][row].nonzero().flatten()}
        assert present == {look.category for look in scene.looks}
        assert reader.HEADS["context"][told["context"]] == scene.background
        assert reader.HEADS["relation"][told["relation"]] == (scene.relation or "none")
        if scene.relation is not None:
            assert told["color"] == told["pattern"] == told["angle"] == -100
        else:
            assert reader.HEADS["color"][told["color"]] == scene.looks[0].primary
            assert reader.HEADS["pattern"][told["pattern"]] == scene.looks[0].pattern
            assert reader.HEADS["angle"][told["angle"]] == scene.angle
    assert len({scene.relation for scene in scenes}) == 5
    assert reader.HEADS["context"] == BACKGROUNDS


def test_the_reader_sees_more_of_the_looks_that_are_hard_to_tell():
    scenes = [sample_scene(number, SCORER_INSTANCES).describe() for number in range(300)]
    two_tone = {"striped", "dotted", "checked"}
    hard = [reader.often(scene) for scene in scenes if scene.relation or scene.looks[0].pattern in two_tone]
    rest = [reader.often(scene) for scene in scenes if not scene.relation and scene.looks[0].pattern not in two_tone]
    assert len(hard) + len(rest) == 300
    assert min(hard) > max(rest) == min(rest) == 1


@settings(max_examples=30)
@given(
    kinds=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_neighbours_are_different_and_of_as_few_kinds_as_a_run_can_have(kinds, seed, data):
    count = data.draw(st.integers(1, len(kinds)))
    chosen = identity.neighbours(torch.tensor(kinds), count, torch.Generator().manual_seed(seed))
    assert len(set(chosen.tolist())) == count
    found = [kinds[place] for place in chosen]
    # A run round the sorted circle: every kind but those at its two ends is there completely.
    changes = [kind for kind, before in zip(found[1:], found, strict=False) if kind != before]
    for kind in changes[:-1]:
        assert found.count(kind) == kinds.count(kind) or kind == found[0]


def test_neighbours_of_one_kind_differ_from_draw_to_draw():
    kinds = torch.arange(12).repeat_interleave(100)
    drawn = {tuple(identity.neighbours(kinds, 8, torch.Generator().manual_seed(seed)).tolist()) for seed in range(20)}
    assert len(drawn) == 20


def test_contrast_is_cross_entropy_over_all_others():
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(6, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    losses = []
    for n in range(6):
        scores = [vectors[n] @ vectors[m] / 0.07 for m in range(6) if m != n]
        losses.append(np.log(np.exp(scores).sum()) - vectors[n] @ vectors[(n + 3) % 6] / 0.07)
    assert identity.contrast(torch.from_numpy(vectors), 0.07).item() == pytest.approx(np.mean(losses))


def test_augmentation_is_slight_seeded_and_keeps_pictures_distinct():
    pixels = np.stack([render(sample_scene(number, SCORER_INSTANCES)).pixels for number in range(16)])
    clean = as_image(pixels)
    one, same, other = (scorers.worn(clean, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == clean.shape
    assert one.abs().max() <= 1
    assert torch.equal(torch.cdist(one.flatten(1), clean.flatten(1)).argmin(1), torch.arange(16))
    assert (one - clean).flatten(1).std(1).min() > 0.02
    # Sides have words: what is light on the left stays so.
    sided = torch.ones(64, 3, 64, 64)
    sided[..., 32:] = -1
    seen = scorers.worn(sided, torch.Generator().manual_seed(3))
    assert (seen[..., :28].mean((1, 2, 3)) > 0.5).all()
    assert (seen[..., 36:].mean((1, 2, 3)) < -0.5).all()


def test_work_folders_may_be_moved(work, tmp_path):
    """Checkpoints name no path: a training resumes in a copied folder."""
    shutil.copyfile(work / "identity.safetensors", tmp_path / "identity.safetensors")
    shutil.copyfile(work / "scorer_photographs.npy", tmp_path / "scorer_photographs.npy")
    identity.fit(MACHINE, TINY, tmp_path, None)
    assert not (tmp_path / "log.jsonl").exists()  # nothing was left to do
