"""Pictures of concepts for programs and notebooks: rendered here, or by a diffusers pipeline of one's own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from PIL import Image
from torch import Tensor

from perfusion_ops.base_model import Base
from perfusion_ops.concept import Concept, Spelled
from perfusion_ops.conditioning import Conditioning, PromptRow, condition, count_chunks, prompt_row
from perfusion_ops.config import SamplingConfig
from perfusion_ops.controls.net import Control, ControlNet, prepared
from perfusion_ops.metric import Metric
from perfusion_ops.regions import acting, condition_regions, everywhere, has_offsets, is_regional, prompts_of, spelled
from perfusion_ops.rendering import RenderRow, Sampler, unconditional
from perfusion_ops.rendering import render as render_rows


def render(
    base: Base,
    metric: Metric,
    prompt: str,
    concepts: Sequence[Concept] = (),
    *,
    seeds: Sequence[int] = (0,),
    control: ControlNet | None = None,
    control_picture: Image.Image | None = None,
    control_strength: float = 1.0,
    **settings: Any,
) -> list[Image.Image]:
    """Render a prompt, one picture per seed.

    Args:
        base: the base model.
        metric: its metric.
        prompt: a text with `{0}`, `{1}`, ... for the concepts.
        concepts: the concepts by number.
        seeds: one per picture; the same seed gives the same noise on every device.
        control: a ControlNet of `perfusion_ops.base_model.load_control`.
        control_picture: edges, a depth map or a pose, ready made; it is stretched to the size of the pictures.
        control_strength: factor of what the ControlNet adds, above 0.
        settings: fields of `perfusion_ops.config.SamplingConfig` that differ from the base model's defaults.

    Raises:
        PromptTooLongError: the prompt does not fit the text encoder.
        ValueError: a setting is out of range, the prompt names a concept that is not there, two concepts are too alike,
            a picture is not finite, or a ControlNet has no picture or the other way round.

    >>> import perfusion_ops
    >>> base = perfusion_ops.load_base("mini")
    >>> metric = perfusion_ops.estimate_metric(base, 2000)
    >>> first, second = perfusion_ops.render(base, metric, "a photo of a mug in the snow", seeds=[1, 2], steps=4)
    >>> first.size
    (64, 64)
    """
    config = _sampling(base, settings)
    side = base.resolution
    sampler = Sampler(
        config.width or side,
        config.height or side,
        config.steps,
        config.guidance,
        config.scheduler,
        guidance_rescale=config.guidance_rescale,
        vae_tiling=config.vae_tiling,
    )
    positive = _row(prompt, concepts, config)
    everywhere = positive.concepts if config.edit_unconditional else ()
    negative = _row(config.negative_prompt, concepts, config, everywhere)
    if (control is None) != (control_picture is None):
        raise ValueError("control and control_picture go together: give both or neither")
    shown = None
    read = [*prompts_of(positive), negative]
    if control is not None and control_picture is not None:
        shown = Control(control, prepared(control_picture, sampler.width, sampler.height), control_strength)
        read += [spelled(positive), spelled(negative)]  # a ControlNet reads the superclasses
    chunks = count_chunks(base, read, config.prompt_chunks)
    positive, negative = replace(positive, chunks=chunks), replace(negative, chunks=chunks)
    pictures = render_rows(
        base, metric, [RenderRow(positive, negative, seed, control=shown) for seed in seeds], sampler
    )
    for seed, picture in zip(seeds, pictures, strict=True):
        if picture is None:
            raise ValueError(
                f"the picture with seed {seed} has values that are not finite: lower guidance, take more steps or "
                "another scheduler, or train the concept again"
            )
    return [Image.fromarray(picture) for picture in pictures if picture is not None]


def prompt_embeds(
    base: Base, metric: Metric, prompts: str | Sequence[str], concepts: Sequence[Concept] = (), **settings: Any
) -> Tensor:
    """What an attached diffusers pipeline takes as `prompt_embeds` and as `negative_prompt_embeds`.

    A concept of recipe `offset` acts at every pixel here, without the photos that it may keep and without its edit of
    convolutions; `regional_embeds` and `render` restrict it to the product, and use both.

    Args:
        base: the result of `attach`.
        metric: its metric.
        prompts: one or B texts with `{0}`, `{1}`, ... for the concepts; "" for the usual negative prompt.
        concepts: the concepts by number, the same for all prompts.
        settings: `bias`, `temperature` and `lock`, as in `render`; and `prompt_chunks`, the number of chunks that the
            result has, which must be that of the negative prompts.

    Returns:
        Keys and values of all layers, (B, N, R): N tokens, R rows of all key and value projections.

    Raises:
        PromptTooLongError: a prompt does not fit the text encoder.
        ValueError: as `render`.

    >>> import perfusion_ops, torch
    >>> from diffusers import StableDiffusionPipeline
    >>> from perfusion_ops.mini import base_folder
    >>> pipeline = StableDiffusionPipeline.from_pretrained(base_folder(), dtype=torch.float32)
    >>> base = perfusion_ops.attach(pipeline, base_folder())
    >>> metric = perfusion_ops.estimate_metric(base, 2000)
    >>> embeds = perfusion_ops.prompt_embeds(base, metric, "a photo of a mug in the snow")
    >>> embeds.shape
    torch.Size([1, 32, 1600])
    >>> picture = pipeline(
    ...     prompt_embeds=embeds,
    ...     negative_prompt_embeds=perfusion_ops.prompt_embeds(base, metric, ""),
    ...     num_inference_steps=4,
    ...     generator=torch.Generator().manual_seed(1),
    ... ).images[0]
    >>> picture.size
    (64, 64)
    """
    config = _sampling(base, settings)
    rows = _rows(prompts, concepts, config)
    return _without_regions(base, metric, rows).kv


def pipeline_inputs(
    base: Base,
    metric: Metric,
    prompts: str | Sequence[str],
    concepts: Sequence[Concept] = (),
    *,
    negative_prompt: str = "",
    **settings: Any,
) -> dict[str, Any]:
    """All arguments of an attached diffusers pipeline that say what is drawn, whatever the family of the base model.

    They are what `prompt_embeds` gives for the prompts and for the negative prompt, and the pooled vectors that SDXL
    takes beside them. An empty negative prompt is what the family takes for it: zeros for SDXL as it is published.
    Concepts of recipe `offset` act at every pixel, as in `prompt_embeds`.

    Args:
        base: the result of `attach`.
        metric: its metric.
        prompts: one or B texts with `{0}`, `{1}`, ... for the concepts.
        concepts: the concepts by number, the same for all prompts.
        negative_prompt: of all prompts; it may name concepts as well.
        settings: as in `prompt_embeds`.

    Returns:
        Arguments of the pipeline's call.

    Raises:
        PromptTooLongError: a prompt does not fit the text encoder.
        ValueError: as `render`.

    >>> import perfusion_ops, torch
    >>> from diffusers import StableDiffusionPipeline
    >>> from perfusion_ops.mini import base_folder
    >>> pipeline = StableDiffusionPipeline.from_pretrained(base_folder(), dtype=torch.float32)
    >>> base = perfusion_ops.attach(pipeline, base_folder())
    >>> metric = perfusion_ops.estimate_metric(base, 2000)
    >>> inputs = perfusion_ops.pipeline_inputs(base, metric, "a photo of a mug in the snow")
    >>> sorted(inputs)
    ['negative_prompt_embeds', 'prompt_embeds']
    >>> pipeline(**inputs, num_inference_steps=4).images[0].size
    (64, 64)
    """
    config = _sampling(base, settings)
    rows = _rows(prompts, concepts, config)
    against = replace(_row(negative_prompt, concepts, config), chunks=config.prompt_chunks)
    found = _without_regions(base, metric, rows)
    negative = unconditional(base, metric, [against] * len(rows))
    family = base.folder.family
    return {
        **family.given("", found.kv, found.extra),
        **family.given("negative_", negative.kv, negative.extra),
        **family.call,
    }


@contextmanager
def regional_embeds(
    base: Base,
    metric: Metric,
    prompts: str | Sequence[str],
    concepts: Sequence[Concept] = (),
    *,
    steps: int,
    **settings: Any,
) -> Iterator[Tensor]:
    """`prompt_embeds` of concepts that act only where their products are, for one call of an attached pipeline.

    Inside the `with` block, the pipeline draws what `render` draws. It is for concepts of recipe `offset` and for
    `combine="regional"`; other concepts act as with `prompt_embeds`.

    Args:
        base: the result of `attach`.
        metric: its metric.
        prompts: one or B texts with `{0}`, `{1}`, ... for the concepts.
        concepts: the concepts by number, the same for all prompts.
        steps: the pipeline's `num_inference_steps`.
        settings: `bias`, `temperature`, `lock`, `combine` and `strength`, as in `render`; and `prompt_chunks`, as in
            `prompt_embeds`.

    Yields:
        Keys and values of all layers, (B, N, R), as `prompt_embeds`.

    Raises:
        PromptTooLongError: a prompt does not fit the text encoder.
        ValueError: as `render`; or under `combine="regional"` some prompts name one concept and others several.
        RuntimeError: the pipeline runs its denoiser more often than `steps` says.

    >>> import perfusion_ops, torch
    >>> from diffusers import StableDiffusionPipeline
    >>> from perfusion_ops.mini import base_folder
    >>> from perfusion_ops.mini.world.products import product
    >>> from perfusion_ops.mini.world.scene import photograph, render
    >>> from PIL import Image
    >>> pipeline = StableDiffusionPipeline.from_pretrained(base_folder(), dtype=torch.float32)
    >>> base = perfusion_ops.attach(pipeline, base_folder())
    >>> metric = perfusion_ops.estimate_metric(base, 2000)
    >>> photo = Image.fromarray(render(photograph(product("mug", 10_000_007), 0)).pixels)
    >>> concept = perfusion_ops.train_concept(base, metric, "mug", [photo], steps=2, recipe="offset")
    >>> with perfusion_ops.regional_embeds(base, metric, "a {0} in the snow", [concept], steps=4) as embeds:
    ...     picture = pipeline(
    ...         prompt_embeds=embeds,
    ...         negative_prompt_embeds=perfusion_ops.prompt_embeds(base, metric, ""),
    ...         num_inference_steps=4,
    ...         generator=torch.Generator().manual_seed(1),
    ...     ).images[0]
    >>> picture.size
    (64, 64)
    """
    config = _sampling(base, settings)
    rows = _rows(prompts, concepts, config)
    regional = [is_regional(row) for row in rows]
    if any(regional) != all(regional):
        raise ValueError("some prompts name one concept and others several: use one `with` block for each of the kinds")
    if not any(regional) and not any(map(has_offsets, rows)):
        yield condition(base, metric, rows).kv
        return
    embeds, regions = condition_regions(base, metric, rows)
    with acting(base, regions, steps):
        yield embeds.kv


def _without_regions(base: Base, metric: Metric, rows: Sequence[PromptRow]) -> Conditioning:
    """Conditioning of B rows in which offsets act at every pixel."""
    found = condition(base, metric, rows)
    return everywhere(base, rows, found) if any(map(has_offsets, rows)) else found


def _rows(prompts: str | Sequence[str], concepts: Sequence[Concept], config: SamplingConfig) -> list[PromptRow]:
    """The rows of one or B prompts, each with the number of chunks that is asked for."""
    texts = [prompts] if isinstance(prompts, str) else prompts
    return [replace(_row(text, concepts, config), chunks=config.prompt_chunks) for text in texts]


def _row(
    text: str, concepts: Sequence[Concept], config: SamplingConfig, everywhere: Sequence[Concept | Spelled] = ()
) -> PromptRow:
    return prompt_row(
        text,
        concepts,
        bias=config.bias,
        temperature=config.temperature,
        lock=config.lock,
        combine=config.combine,
        strength=config.strength,
        weighted=config.prompt_weights,
        everywhere=everywhere,
    )


def _sampling(base: Base, settings: dict[str, Any]) -> SamplingConfig:
    return SamplingConfig.model_validate({**base.folder.settings.sampling, **settings})
