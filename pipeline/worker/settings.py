"""Settings of a worker, in a module that a driver imports without PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass

from perfusion_ops.config import Combine, ImageFormat, MetricConfig
from pipeline.inputs.pictures import InputLimits


@dataclass(frozen=True)
class Encoding:
    """How renders become files.

    Attributes:
        format: png, webp or mp4; the ending of their paths.
        webp_quality: of lossy WebP, 1 to 100; None for lossless.
        png_level: of zlib, 0 to 9; 1 looks for runs only. It changes bytes, never pixels.
    """

    format: ImageFormat = "png"
    webp_quality: int | None = None
    png_level: int = 1


@dataclass(frozen=True)
class ControlSource:
    """A ControlNet of the run: its name in the spec, where it is, and the digest that its files must have."""

    name: str
    location: str
    digest: str


@dataclass(frozen=True)
class WorkerSettings:
    """Everything that a worker needs to know; sent to other machines by value.

    Attributes:
        root: folder or URL under which objects are written.
        storage_options: fsspec options, for one filesystem or grouped by scheme.
        base: location of the base model.
        base_digest: the digest that its files must have.
        render_base: location of the base model that renders, if it is another one.
        render_base_digest: the digest that its files must have.
        motion: location of the motion adapter, if videos are drawn.
        motion_digest: the digest that its files must have.
        controls: the ControlNets that renders may name.
        metric: how the metric is estimated.
        metric_key: content key of the metric.
        limits: of photos.
        device: a torch device, or `auto`: the slot's GPU if it has one, else the CPU.
        dtype: the denoiser's type, or `auto`: bfloat16 on a GPU, float32 elsewhere.
        micro_batch: training samples in the denoiser at once; a worker halves it when it runs out of memory.
        recompute: whether training computes activations twice: `on`, `off`, or `auto`, once few samples fit.
        compile: whether the denoiser that renders is compiled.
        checkpoint_s: seconds between training checkpoints.
        edit_unconditional: whether concepts act on unconditional rows as well.
        combine: how several concepts of a prompt act together.
        prompt_weights: whether prompts have weights.
        prompt_chunks: encodings side by side that a prompt may take.
        vae_tiling: whether large pictures are decoded tile by tile.
        encoding: of renders.
        store_threads: renders that are encoded and written at once.
        local_files: some of the local paths that workers read; a node without them is not fit.
    """

    root: str
    storage_options: Mapping[str, object] | None
    base: str
    base_digest: str
    metric: MetricConfig
    metric_key: str
    limits: InputLimits
    device: str = "auto"
    dtype: str = "auto"
    micro_batch: int = 128
    recompute: str = "auto"
    compile: bool = False
    checkpoint_s: float = 60.0
    edit_unconditional: bool = False
    combine: Combine = "paper"
    prompt_weights: bool = False
    prompt_chunks: int = 1
    vae_tiling: bool = False
    encoding: Encoding = Encoding()
    store_threads: int = 4
    local_files: tuple[str, ...] = ()
    render_base: str | None = None
    render_base_digest: str = ""
    motion: str | None = None
    motion_digest: str = ""
    controls: tuple[ControlSource, ...] = ()
