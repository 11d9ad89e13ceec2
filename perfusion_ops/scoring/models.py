"""Loaded scorers: the folder's own preprocessing, one forward pass, unit vectors or probabilities.

Everything is computed in float32, whatever the type of the stored weights. Pictures are prepared by transformers'
Pillow code even if torchvision is installed, so that a score does not depend on other packages. A folder is refused if
weights of the model are missing or if it cannot score a plain picture.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from perfusion_ops.base_model import quiet_libraries
from perfusion_ops.scoring.choice import ScorerChoice
from perfusion_ops.scoring.folder import CLASS_TOKEN_TYPES, MULTI_LABEL_HEADS, ScorerError, ScorerFolder
from perfusion_ops.scoring.protocols import Embeddings, Pictures, Scorers
from perfusion_ops.text import PromptTooLongError

T = TypeVar("T")

_LOCAL = {"local_files_only": True, "trust_remote_code": False}
# Of two sizes, neither square; a folder whose preprocessing does not make them equal cannot score a batch.
_PLAIN = (np.full((96, 128, 3), 127, np.uint8), np.full((128, 96, 3), 127, np.uint8))


def load_scorers(choice: ScorerChoice, *, device: str = "auto") -> Scorers:
    """Load the chosen scorers; a folder with several purposes is loaded once.

    Args:
        choice: described folders.
        device: a torch device; "auto" is a GPU if there is one.

    Raises:
        ScorerError: a folder does not load or cannot score.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise ScorerError("this machine has no CUDA device that PyTorch can use: score with the device cpu, or auto")
    dual = DualScorer(choice.text, device) if choice.text else None
    image = None
    if choice.image:
        shared = dual if choice.text and choice.image.path == choice.text.path else None
        image = shared or (DualScorer if choice.image.kind == "dual" else ImageScorer)(choice.image, device)
    return Scorers(dual, image, LabelReader(choice.reader, device) if choice.reader else None)


class ImageScorer:
    """An `ImageEmbedder` over an image model: the class token of a transformer, the pooled map of a convolution."""

    def __init__(self, folder: ScorerFolder, device: str = "cpu") -> None:
        """Load a folder of kind image.

        Raises:
            ScorerError: it does not load, or cannot embed a picture.
        """
        from transformers import AutoModel

        self._folder, self._device = folder, device
        # The embedding does not use its pooler, and DINO checkpoints have none.
        options = {"add_pooling_layer": False} if folder.model_type == "vit" else {}
        self._model = _model(AutoModel, folder, device, **options)
        self._prepare = _Preprocessor(folder)
        _try(folder, lambda: self.embed_images(_PLAIN))

    @torch.inference_mode()
    def embed_images(self, pictures: Pictures) -> Embeddings:
        """See `ImageEmbedder`."""
        output = self._model(pixel_values=self._prepare(pictures).to(self._device))
        token = self._folder.model_type in CLASS_TOKEN_TYPES
        return _unit(self._folder, output.last_hidden_state[:, 0] if token else output.pooler_output.flatten(1))


class DualScorer:
    """A `DualEmbedder` over a CLIP or SigLIP model."""

    def __init__(self, folder: ScorerFolder, device: str = "cpu") -> None:
        """Load a folder of kind dual.

        Raises:
            ScorerError: it does not load, or cannot embed a picture or a text.
        """
        from transformers import AutoModel, AutoTokenizer

        self._folder, self._device = folder, device
        self._model = _model(AutoModel, folder, device)
        self._prepare = _Preprocessor(folder)
        with quiet_libraries():
            self._tokenizer: Any = _try(folder, lambda: AutoTokenizer.from_pretrained(folder.path, **_LOCAL))
        self._positions = int(self._model.config.text_config.max_position_embeddings)
        _try(folder, lambda: (self.embed_images(_PLAIN), self.embed_texts(["a photo"])))

    @torch.inference_mode()
    def embed_images(self, pictures: Pictures) -> Embeddings:
        """See `ImageEmbedder`."""
        pixels = self._prepare(pictures).to(self._device)
        return _unit(self._folder, self._model.get_image_features(pixel_values=pixels).pooler_output)

    def check_text(self, text: str) -> None:
        """See `TextEmbedder`."""
        length = len(self._tokenizer(text, truncation=False, verbose=False)["input_ids"])
        if length > self._positions:
            raise PromptTooLongError(
                f"the prompt has {length} tokens with start and end, the scorer {self._folder.name} takes "
                f"{self._positions}: shorten {text!r}"
            )

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """See `TextEmbedder`."""
        for text in texts:
            self.check_text(text)
        # Padded to the full length, as in SigLIP's training; CLIP ignores everything after the end token.
        ids = self._tokenizer(list(texts), padding="max_length", max_length=self._positions)["input_ids"]
        found = self._model.get_text_features(input_ids=torch.tensor(ids, device=self._device))
        return _unit(self._folder, found.pooler_output)


class LabelReader:
    """A `Reader` over an image classifier whose labels name their head."""

    def __init__(self, folder: ScorerFolder, device: str = "cpu") -> None:
        """Load a folder of kind reader.

        Raises:
            ScorerError: it does not load, or cannot read a picture.
        """
        from transformers import AutoModelForImageClassification

        self._folder, self._device = folder, device
        self._model = _model(AutoModelForImageClassification, folder, device)
        self._prepare = _Preprocessor(folder)
        _try(folder, lambda: self.read(_PLAIN))

    @property
    def heads(self) -> Mapping[str, tuple[str, ...]]:
        """See `Reader`."""
        return self._folder.heads

    @torch.inference_mode()
    def read(self, pictures: Pictures) -> Mapping[str, NDArray[np.float32]]:
        """See `Reader`."""
        logits = self._model(pixel_values=self._prepare(pictures).to(self._device)).logits
        _check_finite(self._folder, logits)
        return {
            head: (logits[:, columns].sigmoid() if head in MULTI_LABEL_HEADS else logits[:, columns].softmax(1))
            .cpu()
            .numpy()
            for head, columns in ((head, list(places)) for head, places in self._folder.columns.items())
        }


class _Preprocessor:
    """Pictures to pixel values (B, 3, H, W) float32, following the folder's preprocessor_config.json."""

    def __init__(self, folder: ScorerFolder) -> None:
        from transformers import AutoImageProcessor

        with quiet_libraries():
            self._process: Any = _try(
                folder, lambda: AutoImageProcessor.from_pretrained(folder.path, backend="pil", **_LOCAL)
            )
        self._path: Path = folder.path

    def __call__(self, pictures: Pictures) -> Tensor:
        arrays = [_array(picture) for picture in pictures]
        if not arrays:
            raise ValueError("there is no picture to score: give at least one")
        values = self._process(images=arrays, input_data_format="channels_last")["pixel_values"]
        if len({value.shape for value in values}) > 1:
            raise ScorerError(
                f"the preprocessor_config.json of {self._path} leaves pictures at different sizes: "
                "let it crop, or resize to a height and a width"
            )
        return torch.from_numpy(np.stack(values).astype(np.float32, copy=False))


def _array(picture: NDArray[np.uint8] | Image.Image) -> NDArray[np.uint8]:
    array = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(f"a picture is {array.dtype} of shape {array.shape}: give uint8 of shape (height, width, 3)")
    return array


def _model(loader: Any, folder: ScorerFolder, device: str, **options: Any) -> Any:
    """The frozen model in float32; all of its weights come from the folder."""
    with quiet_libraries():
        model, report = _try(
            folder,
            lambda: loader.from_pretrained(
                folder.path, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **_LOCAL, **options
            ),
        )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ScorerError(
            f"the weights of {folder.path} lack {missing[0]} and {len(missing) - 1} more of what its config.json says: "
            "copy the model again, or save it with the right architecture"
        )
    return _try(folder, lambda: model.requires_grad_(False).eval().to(device))


def _try(folder: ScorerFolder, call: Callable[[], T]) -> T:
    """The result of `call`; any error that transformers raises becomes a ScorerError about the folder."""
    try:
        return call()
    except ScorerError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ScorerError(
            f"{folder.path} cannot be used as a scorer ({type(error).__name__}: {reason[:300]}): copy the model "
            "again, or give another"
        ) from error


def _unit(folder: ScorerFolder, vectors: Tensor) -> Embeddings:
    _check_finite(folder, vectors)
    return functional.normalize(vectors.float(), dim=1).cpu().numpy()


def _check_finite(folder: ScorerFolder, values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise ScorerError(f"{folder.path} gives numbers that are not finite: its weights are damaged; copy it again")
