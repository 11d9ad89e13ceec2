"""The functions that `perfusion_ops` offers: their examples run, and they give what a run gives."""

import doctest
import importlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageOps

import perfusion_ops
from perfusion_ops.base.folder import BaseError
from perfusion_ops.concept_file import ConceptFileError
from perfusion_ops.conditioning import PromptRow
from perfusion_ops.config import MetricConfig
from perfusion_ops.metric import MetricError
from perfusion_ops.mini import base_folder
from perfusion_ops.mini.world import grammar
from perfusion_ops.mini.world.products import product
from perfusion_ops.mini.world.scene import photograph
from perfusion_ops.mini.world.scene import render as draw
from perfusion_ops.rendering import RenderRow, Sampler, render
from perfusion_ops.training.trainer import TrainingDivergedError
from pipeline.bases.metrics import load_metric
from pipeline.storage.objects import Storage
from tests.support.runs import check_alike
from tests.support.tiny_base import random_metric, small_parts
from tests.support.tiny_control import control_folder, drawing, sd_folder, shown

MUG = product("mug", 10_000_007)
PROMPT = "a photo of a {0} in the snow"


@pytest.fixture(scope="module")
def base():
    return perfusion_ops.load_base("mini")


@pytest.fixture(scope="module")
def metric(base):
    return perfusion_ops.estimate_metric(base, 2000)


@pytest.fixture(scope="module")
def photos():
    return [Image.fromarray(draw(photograph(MUG, number)).pixels) for number in range(4)]


@pytest.fixture(scope="module")
def concept(base, metric, photos):
    return perfusion_ops.train_concept(base, metric, "mug", photos, steps=8)


@pytest.fixture(scope="module")
def paper(base, metric, photos):
    """A concept of the published recipe, which is not the embedded base's default."""
    return perfusion_ops.train_concept(base, metric, "mug", photos, steps=8, recipe="paper")


@pytest.fixture
def pipeline():
    loaded = StableDiffusionPipeline.from_pretrained(base_folder(), dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def pixels(image):
    return np.asarray(image).astype(int)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# The examples


@pytest.mark.parametrize("name", perfusion_ops.__all__)
def test_every_function_has_an_example_that_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function = getattr(perfusion_ops, name)
    [test] = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    assert test.examples[0].source == "import perfusion_ops\n" or "import perfusion_ops," in test.examples[0].source
    assert doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL).run(test).failed == 0


def test_the_package_lists_its_functions():
    assert set(perfusion_ops.__all__) == set(perfusion_ops._MODULES)
    assert set(perfusion_ops.__all__) <= set(dir(perfusion_ops))
    for name in perfusion_ops.__all__:
        assert name in perfusion_ops.__doc__
        module = importlib.import_module(f"perfusion_ops.api.{perfusion_ops._MODULES[name]}")
        assert getattr(perfusion_ops, name) is getattr(module, name)
    with pytest.raises(AttributeError, match="no attribute 'load_bases'"):
        _ = perfusion_ops.load_bases


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, perfusion_ops; print(sorted({'torch', 'numpy', 'PIL', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ControlNets


def test_a_controlnet_and_its_picture_draw_what_the_batch_of_a_run_draws(tmp_path):
    from perfusion_ops.base_model import load_control
    from perfusion_ops.controls.folder import describe_control

    base = perfusion_ops.load_base(sd_folder(tmp_path / "sd"))
    net = load_control(base, describe_control(control_folder(tmp_path / "net", small_parts()["unet"]), base.folder))
    metric = random_metric(24, base_digest=base.folder.digest)
    settings = {"seeds": [3], "steps": 2, "scheduler": "ddim", "guidance": 4.0}
    [plain] = perfusion_ops.render(base, metric, "a mug", **settings)
    [image] = perfusion_ops.render(
        base, metric, "a mug", control=net, control_picture=drawing(), control_strength=0.5, **settings
    )
    row = RenderRow(PromptRow("a mug"), PromptRow(""), 3, control=shown(net, 0, 0.5))
    [wanted] = render(base, metric, [row], Sampler(16, 16, 2, 4.0, "ddim"))
    assert np.array_equal(pixels(image), wanted)
    assert np.abs(pixels(plain) - wanted).max() > 4
    for given in ({"control": net}, {"control_picture": drawing()}):
        with pytest.raises(ValueError, match="go together: give both or neither"):
            perfusion_ops.render(base, metric, "a mug", **given, **settings)


# The same as a run


def test_the_metric_is_the_one_that_a_run_estimates(base, metric, tmp_path):
    of_a_run = load_metric(Storage(str(tmp_path)), base, MetricConfig(captions=2000), "k" * 64)
    assert of_a_run.digest == metric.digest
    [file] = tmp_path.rglob("*.safetensors")
    assert perfusion_ops.load_metric(base, file).digest == metric.digest
    assert perfusion_ops.load_metric(base, str(file)).held_out == pytest.approx(metric.held_out)


def test_own_captions_are_held_out_first(base):
    captions = list(grammar.captions(3000, 5))
    metric = perfusion_ops.estimate_metric(base, captions, ridge=1e-6)
    tested_otherwise = perfusion_ops.estimate_metric(base, [*reversed(captions[:1000]), *captions[1000:]], ridge=1e-6)
    assert (metric.ridge, metric.digest) == (1e-6, tested_otherwise.digest)
    assert metric.digest != perfusion_ops.estimate_metric(base, captions[:-1], ridge=1e-6).digest
    with pytest.raises(MetricError, match="no token to estimate the metric from"):
        perfusion_ops.estimate_metric(base, captions[:1000])


# Concepts


def test_training_takes_images_and_files_alike(base, metric, photos, concept, tmp_path):
    files = []
    for number, photo in enumerate(photos):
        files.append(tmp_path / f"{number}.png")
        photo.save(files[-1])
    again = perfusion_ops.train_concept(base, metric, "mug", [str(files[0]), *files[1:]], steps=8)
    check_alike(again.embedding, concept.embedding)
    check_alike(again.value_offset, concept.value_offset)


def test_a_photo_is_turned_as_its_exif_says(base, metric, photos, tmp_path):
    file = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    photos[0].rotate(90, expand=True).save(file, exif=exif)
    assert (pixels(ImageOps.exif_transpose(Image.open(file))) == pixels(photos[0])).all()
    turned, straight = (perfusion_ops.train_concept(base, metric, "mug", [each], steps=2) for each in (file, photos[0]))
    check_alike(turned.value_offset, straight.value_offset)


def test_steps_are_reported_and_a_mask_changes_what_is_learned(base, metric, photos, concept):
    steps = []
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    masked = perfusion_ops.train_concept(
        base, metric, "mug", photos, masks=[mask] * 4, on_step=lambda *each: steps.append(each), steps=8
    )
    assert [step for step, _ in steps] == list(range(1, 9))
    assert steps[-1][1] == pytest.approx(masked.loss)
    assert not torch.equal(masked.value_offset, concept.value_offset)


def test_what_cannot_be_trained_says_why(base, metric, photos):
    damaged = perfusion_ops.load_base("mini")
    damaged.denoiser.conv_out.bias.fill_(float("nan"))
    with pytest.raises(TrainingDivergedError, match="diverged at step 1"):
        perfusion_ops.train_concept(damaged, metric, "mug", photos, steps=2)
    with pytest.raises(ValueError, match="no photo"):
        perfusion_ops.train_concept(base, metric, "mug", [])
    with pytest.raises(ValueError, match="step"):
        perfusion_ops.train_concept(base, metric, "mug", photos, step=3)
    with pytest.raises(ValueError, match="shorter"):
        perfusion_ops.train_concept(base, metric, "mug", photos, masks=[])


def test_a_saved_concept_is_bound_to_its_base_and_metric(base, metric, concept, tmp_path):
    file = tmp_path / "mug.safetensors"
    perfusion_ops.save_concept(concept, file)
    loaded = perfusion_ops.load_concept(base, metric, file.read_bytes())
    assert torch.equal(loaded.embedding, concept.embedding.half().float())
    other = perfusion_ops.estimate_metric(base, 2001)
    with pytest.raises(ConceptFileError, match="another metric"):
        perfusion_ops.load_concept(base, other, file)
    with pytest.raises(BaseError, match="model_index"):
        perfusion_ops.load_base(tmp_path)


# Pictures


def test_a_picture_depends_on_the_concept_the_seed_and_the_settings(base, metric, concept, paper):
    def picture(concepts=(concept,), prompt=PROMPT, seed=3, **settings):
        [image] = perfusion_ops.render(base, metric, prompt, concepts, seeds=[seed], steps=3, **settings)
        return pixels(image)

    plain = picture()
    assert (picture() == plain).all()
    assert (picture(seed=4) != plain).any()
    assert (picture((), "a photo of a mug in the snow") != plain).any()
    assert (picture(strength=2.0) != plain).any()
    assert (picture([paper], edit_unconditional=True) != picture([paper])).any()
    assert (picture(negative_prompt="a {0}") != plain).any()
    assert picture(width=96, height=64).shape == (64, 96, 3)
    with pytest.raises(ValueError, match=r"\{0\}.*0 concepts"):
        picture(())


@pytest.mark.parametrize(("kind", "combine"), [("paper", "paper"), ("offset", "paper"), ("both", "regional")])
def test_an_attached_pipeline_draws_what_render_draws(base, metric, concept, paper, pipeline, kind, combine):
    attached = perfusion_ops.attach(pipeline, base_folder())
    assert attached.folder.digest == base.folder.digest
    settings = base.folder.settings.sampling
    concepts = {"paper": [paper], "offset": [concept], "both": [concept, paper]}[kind]
    texts = ["a {0} beside a {1}"] if kind == "both" else [PROMPT, "a {0} on the beach"]

    def drawn(embeds):
        return pipeline(
            prompt_embeds=embeds,
            negative_prompt_embeds=perfusion_ops.prompt_embeds(attached, metric, [""] * len(texts)),
            num_inference_steps=4,
            guidance_scale=settings["guidance"],
            generator=[seeded(5) for _ in texts],
        ).images

    everywhere = perfusion_ops.prompt_embeds(attached, metric, texts, concepts)
    with perfusion_ops.regional_embeds(attached, metric, texts, concepts, steps=4, combine=combine) as embeds:
        made = drawn(embeds)
    after = drawn(everywhere)
    for number, text in enumerate(texts):
        [expected] = perfusion_ops.render(base, metric, text, concepts, seeds=[5], steps=4, combine=combine)
        assert abs(pixels(made[number]) - pixels(expected)).max() <= 1
        # Without the `with` block, only a concept of the published recipe is drawn as `render` draws it.
        assert (abs(pixels(after[number]) - pixels(expected)).max() <= 1) == (kind == "paper")
    if len(texts) > 1:
        assert abs(pixels(made[0]) - pixels(made[1])).max() > 10


def test_regional_embeds_are_for_one_call_with_the_pipeline_s_own_number_of_steps(metric, concept, paper, pipeline):
    base = perfusion_ops.attach(pipeline, base_folder())

    def draw_four_steps(embeds):
        pipeline(prompt_embeds=embeds, negative_prompt_embeds=torch.zeros_like(embeds), num_inference_steps=4)

    with (
        pytest.raises(RuntimeError, match=r"more often than 2 steps need.*num_inference_steps"),
        perfusion_ops.regional_embeds(base, metric, PROMPT, [concept], steps=2) as embeds,
    ):
        draw_four_steps(embeds)
    with perfusion_ops.regional_embeds(base, metric, PROMPT, [concept], steps=4) as embeds:
        draw_four_steps(embeds)
        with pytest.raises(RuntimeError, match="once in each `with` block"):
            draw_four_steps(embeds)
    draw_four_steps(embeds)  # the hooks are gone
    texts = ["a {0}", "a {0} beside a {1}"]
    with (
        pytest.raises(ValueError, match="some prompts name one concept and others several"),
        perfusion_ops.regional_embeds(base, metric, texts, [concept, paper], steps=4, combine="regional"),
    ):
        pass


def test_an_attached_pipeline_still_takes_text_prompts(metric, concept, pipeline):
    def picture(text):
        return pixels(pipeline(text, num_inference_steps=3, generator=seeded(1)).images[0])

    before = picture("a photo of a mug in the snow")
    base = perfusion_ops.attach(pipeline)
    assert abs(picture("a photo of a mug in the snow") - before).max() <= 1
    embeds = [perfusion_ops.prompt_embeds(base, metric, text) for text in ("a photo of a mug in the snow", "")]
    [image] = pipeline(
        prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1], num_inference_steps=3, generator=seeded(1)
    ).images
    assert abs(pixels(image) - before).max() <= 1
    with pytest.raises(TypeError, match="changed before"):
        perfusion_ops.attach(pipeline)


def test_a_half_precision_pipeline_keeps_its_encoder(metric):
    pipeline = StableDiffusionPipeline.from_pretrained(base_folder(), dtype=torch.bfloat16)
    base = perfusion_ops.attach(pipeline)
    assert pipeline.text_encoder.dtype == base.dtype == torch.bfloat16
    assert base.texts.models[0].encoder.dtype == torch.float32
    assert perfusion_ops.prompt_embeds(base, metric, "a mug").dtype == torch.bfloat16
