"""What a family of base models is: its text encoders, its denoiser, its pipelines, and what they take.

This module imports neither torch nor diffusers, so that a base model is checked and planned with quickly.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

POOLED = "pooled"  # one vector of a whole prompt, beside the encodings of its tokens
MASK = "mask"  # which positions of a prompt hold tokens

# Which of a family's pipelines draws.
TEXT = "text"  # its denoiser is given noisy latents and text
INPAINT = "inpaint"  # also a mask, and the latents of a photo that is grey where the mask is 1


@dataclass(frozen=True)
class Text:
    """One text encoder of a family and what is read from it.

    Attributes:
        tokenizer: the folder's part with its tokenizer.
        encoder: the folder's part with its weights.
        layer: which hidden state the denoiser is given; None for the last one, normalised.
        pooled: whether the denoiser is also given this encoder's pooled vector.
        masked: whether the encoder and the denoiser ignore padding.
        causal: whether a token is encoded without the ones behind it, so that only the last one of a word has read it.
        limit: tokens that the family reads, where the tokenizer allows more.
        lower: whether the family's pipeline turns prompts into lower case.
        files: a tokenizer has one of these.
    """

    tokenizer: str
    encoder: str
    layer: int | None = None
    pooled: bool = False
    masked: bool = False
    causal: bool = True
    limit: int | None = None
    lower: bool = False
    files: tuple[str, ...] = ("tokenizer.json", "vocab.json")


@dataclass(frozen=True)
class Foreign:
    """How programs that read LoRA files name a family and its parts (`perfusion_ops.export`).

    Attributes:
        architecture: `modelspec.architecture` by the width of a text encoding, without "/lora"; 0 for any other width.
        version: `ss_base_model_version`, likewise.
        embeddings: the tensor of a word embedding's file for each text encoder.
        sgm: whether layers have the names of the family's original implementation, instead of those of diffusers.
    """

    architecture: Mapping[int, str]
    version: Mapping[int, str]
    embeddings: tuple[str, ...]
    sgm: bool = False


def _nothing(_extra: Mapping[str, Any], _time_ids: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Family:
    """A family of base models.

    Attributes:
        kind: `_class_name` in the folder's model_index.json.
        also: further names of pipelines that have the same parts.
        title: the family's name in messages.
        texts: its text encoders; their encodings are joined side by side.
        pipelines: the diffusers class that draws, by task; every family has `text`.
        denoiser: the folder's part with the denoiser.
        further: which pipeline draws with a denoiser that has further input channels, by its number of channels and
            that of the latents.
        arguments: the pipeline's argument for each extra of a conditioning, such as `pooled`.
        added: the denoiser's own arguments in training, from the extras and the time ids of the photos.
        addition: the kinds of `addition_embed_type` that the denoiser may have.
        time_ids: whether the denoiser is told the size and crop of each photo.
        text_projection: the denoiser's module that all text encodings pass before its layers; the edit acts behind it.
        options: of the pipeline's constructor, and of `from_pretrained`.
        call: of each call of the pipeline.
        regional: whether concepts can be restricted to where their product is (`perfusion_ops.regions`).
        loras: whether LoRA files can be fused into it.
        rescales: the pipelines of pictures that take `guidance_rescale`.
        schedule: values of scheduler_config.json that a folder without them is taken to have.
        index_settings: values of model_index.json that decide what is drawn.
        zero_negative: the value of them that says that the empty negative prompt is zero.
        shares_metric: the metric is bound to the text encoders and not to the whole folder, so that fine-tunes of the
            denoiser share it.
        foreign: its names in other programs; None if they have no file for a concept of it.
    """

    kind: str
    title: str
    texts: tuple[Text, ...]
    pipelines: Mapping[str, str]
    also: tuple[str, ...] = ()
    denoiser: str = "unet"
    further: Mapping[tuple[int, int], str] = field(default_factory=dict)
    arguments: Mapping[str, str] = field(default_factory=dict)
    added: Callable[[Mapping[str, Any], Any], dict[str, Any]] = _nothing
    addition: tuple[str | None, ...] = (None,)
    time_ids: bool = False
    text_projection: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    regional: bool = True
    loras: bool = True
    rescales: tuple[str, ...] = (TEXT, INPAINT)
    schedule: Mapping[str, Any] = field(default_factory=dict)
    index_settings: tuple[str, ...] = ()
    zero_negative: str | None = None
    shares_metric: bool = True
    foreign: Foreign | None = None

    @property
    def weights_words(self) -> bool:
        """Whether words of a prompt can have weights: an empty prompt has all positions."""
        return not any(text.masked for text in self.texts)

    @property
    def word_tensors(self) -> tuple[str, ...]:
        """The tensor of a word embedding's file for each text encoder, in other programs; empty if they have none."""
        return self.foreign.embeddings if self.foreign else ()

    @property
    def text_parts(self) -> tuple[str, ...]:
        """The folder's parts that decide the text encodings."""
        return tuple(sorted({part for text in self.texts for part in (text.encoder, text.tokenizer)}))

    @property
    def weight_parts(self) -> tuple[str, ...]:
        """The folder's parts that hold weights."""
        return (*(text.encoder for text in self.texts), self.denoiser, "vae")

    @property
    def parts(self) -> tuple[str, ...]:
        """All parts of the folder that decide what is drawn."""
        return tuple(sorted((*self.text_parts, self.denoiser, "scheduler", "vae")))

    def drawn_by(self, channels: int, latents: int) -> str | None:
        """Which pipeline draws with a denoiser of this many input channels; None if no one does.

        Args:
            channels: that the denoiser takes.
            latents: channels of the latents.
        """
        return TEXT if channels == latents else self.further.get((channels, latents))

    def given(self, prefix: str, kv: Any, extra: Mapping[str, Any]) -> dict[str, Any]:
        """The pipeline's arguments for one conditioning.

        Args:
            prefix: "" for the prompt, "negative_" for the negative prompt.
            kv: keys and values (B, N, R).
            extra: by name, one row per row of `kv`.
        """
        return {
            f"{prefix}prompt_embeds": kv,
            **{f"{prefix}{argument}": extra[name] for name, argument in self.arguments.items()},
        }
