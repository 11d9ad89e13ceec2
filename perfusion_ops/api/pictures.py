"""Pictures of concepts for programs and notebooks: rendered here, or by a diffusers pipeline of one's own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image
from torch import Tensor

from perfusion_ops.base_model import Base
from perfusion_ops.concept import Concept, Spelled
from perfusion_ops.conditioning import PromptRow, condition, prompt_row
from perfusion_ops.config import SamplingConfig
from perfusion_ops.metric import Metric
from perfusion_ops.regions import acting, condition_regions, everywhere, has_offsets, is_regional
from perfusion_ops.rendering import RenderRow, Sampler
from perfusion_ops.rendering import render as render_rows


def render(
    base: Base,
    metric: Metric,
    prompt: str,
    concepts: Sequence[Concept] = (),
    *,
    seeds: Sequence[int] = (0,),
    **settings: Any,
) -> list[Image.Image]:
    """Render a prompt, one picture per seed.

    Args:
        base: the base model.
        metric: its metric.
        prompt: a text with `{0}`, `{1}`, ... for the concepts.
        concepts: the concepts by number.
        seeds: one per picture; the same seed gives the same noise on every device.
        settings: fields of `perfusion_ops.config.SamplingConfig` that differ from the base model's defaults.

    Raises:
        PromptTooLongError: the prompt does not fit the text encoder.
        ValueError: a setting is out of range, the prompt names a concept that is not there, two concepts are too alike,
            or a picture is not finite.

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
    pictures = render_rows(base, metric, [RenderRow(positive, negative, seed) for seed in seeds], sampler)
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

    A concept of recipe `offset` acts at every pixel here; `regional_embeds` and `render` restrict it to the product.

    Args:
        base: the result of `attach`.
        metric: its metric.
        prompts: one or B texts with `{0}`, `{1}`, ... for the concepts; "" for the usual negative prompt.
        concepts: the concepts by number, the same for all prompts.
        settings: `bias`, `temperature` and `lock`, as in `render`.

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
    texts = [prompts] if isinstance(prompts, str) else prompts
    rows = [_row(text, concepts, config) for text in texts]
    found = condition(base, metric, rows)
    return (everywhere(base, rows, found) if any(map(has_offsets, rows)) else found).kv


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
        settings: `bias`, `temperature`, `lock`, `combine` and `strength`, as in `render`.

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
    rows = [_row(text, concepts, config) for text in ([prompts] if isinstance(prompts, str) else prompts)]
    regional = [is_regional(row) for row in rows]
    if any(regional) != all(regional):
        raise ValueError("some prompts name one concept and others several: use one `with` block for each of the kinds")
    if not any(regional) and not any(map(has_offsets, rows)):
        yield condition(base, metric, rows).kv
        return
    embeds, regions = condition_regions(base, metric, rows)
    with acting(base, regions, steps):
        yield embeds.kv


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
