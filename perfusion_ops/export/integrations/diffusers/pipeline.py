"""A diffusers pipeline with the gated edit of concepts that `perfusion export --to diffusers` wrote.

    pipe = DiffusionPipeline.from_pretrained("path/of/the/base", custom_pipeline="folder/of/this/file")
    pipe.load_concepts("folder/of/this/file/concepts.safetensors")
    picture = pipe("a photo of a <mug-0042> on the beach").images[0]

A prompt names a concept by its name in angle brackets. Prompts without one give the pictures of the ordinary pipeline.
"""

import json
from typing import Any

import torch
from diffusers import StableDiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]
from safetensors import safe_open
from torch import Tensor, nn


class _Columns(nn.Module):
    """Replaces a key or value projection: takes its columns of keys and values that were computed beforehand."""

    def __init__(self, start: int, stop: int, width: int, projection: nn.Module) -> None:
        super().__init__()
        self.start, self.stop, self.width, self.projection = start, stop, width, projection

    def forward(self, x: Tensor) -> Tensor:
        return x[..., self.start : self.stop] if x.shape[-1] == self.width else self.projection(x)


class PerfusionPipeline(StableDiffusionPipeline):
    """The ordinary pipeline, and concepts beside it."""

    def load_concepts(self, file: str) -> None:
        """Read a file of concepts; call it once, before LoRAs are loaded.

        Raises:
            ValueError: the file is for a base model of other layers.
        """
        with safe_open(file, "pt") as found:
            self._tensors = {name: found.get_tensor(name).to(self._execution_device) for name in found.keys()}  # noqa: SIM118
            about = found.metadata()
        self._tokens = [f"<{name}>" for name in json.loads(about["names"])]
        self._superclasses = json.loads(about["superclasses"])
        self._bias, self._temperature = float(about["bias"]), float(about["temperature"])
        unet: Any = self.unet
        layers = [m for n, m in unet.named_modules() if n.endswith("attn2") and m.is_cross_attention]
        projections = [(m, name) for name in ("to_k", "to_v") for m in layers]
        self._weight = torch.cat([getattr(m, name).weight for m, name in projections]).detach()
        if self._weight.shape != (self._tensors["outputs"].shape[1], self._tensors["inputs"].shape[1]):
            raise ValueError(
                f"{file} is for another kind of base model: load the one that its concepts were trained on"
            )
        start = 0
        for module, name in projections:
            layer = getattr(module, name)
            stop = start + layer.weight.shape[0]
            setattr(module, name, _Columns(start, stop, len(self._weight), layer))
            start = stop
        start = 0
        for part in ("", "_2"):
            encoder: Any = getattr(self, f"text_encoder{part}", None)
            if encoder is not None:
                width = encoder.get_input_embeddings().weight.shape[1]
                for token, words in zip(self._tokens, self._tensors["embeddings"], strict=True):
                    own = words[start : start + width]
                    self.load_textual_inversion(
                        own, token=token, text_encoder=encoder, tokenizer=getattr(self, f"tokenizer{part}")
                    )
                start += width

    @torch.no_grad()
    def embeds(
        self, texts: str | list[str], bias: float | None = None, temperature: float | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Keys and values (B, N, R) of all layers, and the pooled vectors if the family has them."""
        found = [self._edited(text, bias, temperature) for text in ([texts] if isinstance(texts, str) else texts)]
        pooled = [vector for _, vector in found if vector is not None]
        return torch.cat([kv for kv, _ in found]), torch.cat(pooled) if pooled else None

    def _encoded(self, text: str) -> tuple[Tensor, Tensor | None]:
        device = self._execution_device
        e, _, *pooled = self.encode_prompt(
            prompt=[text], device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return e, pooled[0] if pooled else None

    def _edited(self, text: str, bias: float | None, temperature: float | None) -> tuple[Tensor, Tensor | None]:
        e, pooled = self._encoded(text)
        named = [number for number, token in enumerate(self._tokens) if token in text]
        if not named:
            return e @ self._weight.mT.to(e.dtype), pooled
        plain = text
        for token, superclass in zip(self._tokens, self._superclasses, strict=True):
            plain = plain.replace(token, superclass)
        # A pooled vector has no tokens that a gate could choose, so it is that of the superclass.
        pooled = None if pooled is None else self._encoded(plain)[1]
        i, dual, o = (self._tensors[name][named].float() for name in ("inputs", "duals", "outputs"))
        gram = i @ dual.mT
        products = e.float() @ dual.mT
        beta, tau = self._bias if bias is None else bias, self._temperature if temperature is None else temperature
        gates = torch.sigmoid((products / gram.diagonal() - beta) / tau)
        kept = e.float() - torch.linalg.solve(gram, products.mT).mT @ i
        return (kept.to(e.dtype) @ self._weight.mT.to(e.dtype)) + gates.to(e.dtype) @ o.to(e.dtype), pooled

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        prompt: str | list[str],
        *,
        negative_prompt: str = "",
        bias: float | None = None,
        temperature: float | None = None,
        **options: Any,
    ) -> Any:
        """Draw; `options` are those of the ordinary pipeline."""
        kv, pooled = self.embeds(prompt, bias, temperature)
        negative, negative_pooled = self.embeds([negative_prompt] * len(kv), bias, temperature)
        given: dict[str, Any] = {}
        if pooled is not None and negative_pooled is not None:
            if not negative_prompt and getattr(self.config, "force_zeros_for_empty_prompt", False):
                negative, negative_pooled = torch.zeros_like(negative), torch.zeros_like(negative_pooled)
            given = {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": negative_pooled}
        return super().__call__(prompt_embeds=kv, negative_prompt_embeds=negative, **given, **options)
