"""Every number of the build: sizes, samples, rates and seeds.

`FULL` made the weights that ship; `TINY` only shows that the chain holds together.
"""

from pydantic import Field

from perfusion_ops.config import Frozen, MetricConfig


class Fit(Frozen):
    """How one model is trained: at a constant rate after a warm-up, then down to zero over the last share."""

    samples: int = Field(gt=0, description="scenes seen in all")
    batch: int = Field(gt=0, description="scenes of one step, over all processes")
    rate: float = Field(gt=0, description="AdamW's learning rate at its height")
    inner_rate: float = Field(default=2e-3, gt=0, description="Muon's, where a stage has it train the inner matrices")
    decay: float = Field(default=0.3, ge=0, le=1, description="last share of the steps, over which the rate falls to 0")
    average: float = Field(default=0.999, gt=0, lt=1, description="decay of the running mean of the weights")

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return max(self.samples // self.batch, 1)


class Text(Frozen):
    """The text encoder."""

    width: int = 128
    layers: int = 3
    heads: int = 4
    fit: Fit


class Autoencoder(Frozen):
    """The VAE; four pixels a side become one latent position."""

    channels: tuple[int, int, int] = (16, 32, 64)
    latent: int = 8
    groups: int = 8
    window: int = Field(default=32, description="pixels a side of what is seen of a picture until the rate falls")
    fit: Fit


class Denoiser(Frozen):
    """The UNet, which trains the text encoder on."""

    channels: tuple[int, int, int] = (48, 96, 128)
    heads: int = 4
    groups: int = 16
    unconditional: float = Field(default=0.1, description="share of samples with an empty caption")
    owned: float = Field(default=0.0, description="share of samples in which only its own words tell a product's looks")
    focus: float = Field(default=0.0, ge=0, description="added to the loss's weight of 1 where a product is")
    text_rate: float = Field(default=0.3, description="the text encoder's learning rate as a share of the denoiser's")
    fit: Fit


class Scorer(Frozen):
    """A scorer of any kind: a residual network's widths and depths, or a transformer's width and depth."""

    channels: tuple[int, int, int] = (48, 96, 192)
    depths: tuple[int, int, int] = (1, 2, 1)
    width: int = 128
    layers: int = 4
    fit: Fit


class Recipe(Frozen):
    """The whole build."""

    seed: int = 2026
    pictures: int = Field(description="pictures rendered for the base, none of which a scorer sees")
    scorer_pictures: int = Field(description="pictures rendered for the scorers, none of which the base sees")
    held_out: int = Field(description="pictures that nothing is trained on")
    metric: MetricConfig = Field(default=MetricConfig(), description="how the base's metric is estimated")
    text: Text
    autoencoder: Autoencoder
    denoiser: Denoiser
    reader: Scorer
    identity: Scorer
    dual: Scorer


FULL = Recipe(
    pictures=100_000,
    scorer_pictures=48_000,
    held_out=2_000,
    text=Text(fit=Fit(samples=200_000, batch=128, rate=1e-3)),
    autoencoder=Autoencoder(fit=Fit(samples=104_000, batch=16, rate=2e-3, decay=0.25)),
    denoiser=Denoiser(fit=Fit(samples=540_000, batch=64, rate=8e-4, decay=0.6, average=0.998)),
    reader=Scorer(fit=Fit(samples=200_000, batch=64, rate=2e-3, decay=0.5)),
    identity=Scorer(fit=Fit(samples=160_000, batch=128, rate=2e-3, decay=0.5)),
    dual=Scorer(fit=Fit(samples=160_000, batch=128, rate=1e-3, decay=0.5)),
)

# What `--start` trains a finished base by.
FURTHER = FULL.model_copy(
    update={
        "seed": 2027,
        "denoiser": Denoiser(
            owned=0.5,
            focus=2.0,
            fit=Fit(samples=160_000, batch=32, rate=6e-4, inner_rate=1.5e-3, decay=0.8, average=0.997),
        ),
    }
)

TINY = Recipe(
    pictures=96,
    scorer_pictures=96,
    held_out=32,
    metric=MetricConfig(captions=2_000),
    text=Text(width=32, layers=1, heads=2, fit=Fit(samples=64, batch=16, rate=1e-3)),
    autoencoder=Autoencoder(channels=(8, 8, 8), latent=4, fit=Fit(samples=32, batch=8, rate=1e-3)),
    denoiser=Denoiser(
        channels=(16, 16, 16), heads=2, groups=8, owned=0.5, focus=2.0, fit=Fit(samples=32, batch=8, rate=1e-3)
    ),
    reader=Scorer(channels=(8, 8, 8), fit=Fit(samples=32, batch=8, rate=1e-3)),
    identity=Scorer(channels=(8, 8, 8), fit=Fit(samples=32, batch=8, rate=1e-3)),
    dual=Scorer(width=32, layers=1, fit=Fit(samples=32, batch=8, rate=1e-3)),
)
