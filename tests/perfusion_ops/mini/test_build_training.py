"""Learning for real, on the embedded model: the loss falls, and half-precision files change nothing one could see."""

import numpy as np
import pytest
import torch

from perfusion_ops.base.folder import describe
from perfusion_ops.base_model import encode_pictures, load_base
from perfusion_ops.concept_file import read_concept, write_concept
from perfusion_ops.conditioning import PromptRow
from perfusion_ops.config import MetricConfig, TrainingConfig
from perfusion_ops.metric import estimate
from perfusion_ops.mini import base_folder
from perfusion_ops.mini.world import grammar
from perfusion_ops.mini.world.products import HELD_OUT, product
from perfusion_ops.mini.world.scene import portrait, render
from perfusion_ops.rendering import RenderRow, Sampler
from perfusion_ops.rendering import render as render_rows
from perfusion_ops.training.examples import loss_masks
from perfusion_ops.training.state import Example
from perfusion_ops.training.trainer import Trainer


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    base = load_base(describe(base_folder()))
    captions = list(grammar.captions(4400, seed=1))
    metric = estimate(
        base.texts,
        captions[:4000],
        held_out=captions[4000:],
        config=MetricConfig(),
        base_digest=base.folder.digest,
    )
    examples = []
    for category, superclass in (("mug", "mug"), ("teddy", "teddy bear")):
        item = product(category, HELD_OUT + 3)
        pictures = [render(portrait(item, number)) for number in range(3)]
        pixels = np.stack([picture.pixels for picture in pictures]).transpose(0, 3, 1, 2)
        masks = torch.from_numpy(np.stack([picture.masks[:1] for picture in pictures]))
        latents = encode_pictures(base, torch.from_numpy(pixels).float() / 127.5 - 1)
        config = TrainingConfig(steps=80, batch=4, lr_value=0.01)
        examples.append(Example(superclass, latents, loss_masks(masks, *latents.shape[-2:]), config))
    trainer = Trainer(base, metric, examples)
    trainer.run()
    return base, metric, trainer


def test_the_loss_falls(trained):
    """The same draws are predicted better by the trained concept than by its superclass."""
    base, metric, trainer = trained

    def loss(index, states):
        config = trainer.examples[index].config.model_copy(update={"steps": 10**6, "batch": 48, "seed": 99})
        example = Example(
            trainer.examples[index].superclass, trainer.examples[index].latents, trainer.examples[index].masks, config
        )
        judge = Trainer(base, metric, [example])
        if states is not None:
            with torch.no_grad():
                judge.states[0].embedding.copy_(states[index].embedding)
                judge.states[0].value_target.copy_(states[index].value_target)
            judge.states[0].target_input = states[index].target_input
        judge.step()
        return judge.states[0].losses[0]

    for index in range(2):
        assert loss(index, trainer.states) < 0.97 * loss(index, None)


def test_half_precision_is_invisible(trained):
    base, metric, trainer = trained
    pictures = []
    for dtype in (torch.float32, torch.float16):
        concepts = [
            read_concept(
                write_concept(state.concept(example, base, metric), dtype=dtype),
                base_digest=base.folder.digest,
                metric_digest=metric.digest,
                embedding_width=base.embedding_width,
                text_width=base.text_width,
                value_width=base.stack.key_rows,
            )
            for state, example in zip(trainer.states, trainer.examples, strict=True)
        ]
        rows = [
            RenderRow(PromptRow(prompt, (concept,), (0.6,), (0.15,), lock), PromptRow(""), seed)
            for seed, (concept, prompt, lock) in enumerate(
                (concept, f"a photo of a {{0}} {place}", lock)
                for concept in concepts
                for place, lock in (("on the beach", "local"), ("in the snow", "global"))
            )
        ]
        pictures.append(np.stack(render_rows(base, metric, rows, Sampler(64, 64, 20, 3.5, "ddim"))).astype(int))
    difference = abs(pictures[0] - pictures[1])
    # A change of 2 of 255 in a rare pixel is below what a display shows; PSNR above 50 dB is visually lossless.
    assert 10 * np.log10(255**2 / (difference**2).mean()) > 50
    assert np.quantile(difference, 0.999) <= 2
