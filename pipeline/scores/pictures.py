"""Images that scores need: renders, read and checked, and photos, embedded and cached.

An image that is unavailable is a `RowError` among the results; none is left out. A storage outage raises instead, so
that it is not recorded as a property of images. Of a video, up to `FRAMES` frames are read.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from itertools import repeat

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perfusion_ops.scoring.protocols import ImageEmbedder
from pipeline.contract.errors import Code, RowError
from pipeline.inputs.pictures import decode
from pipeline.inputs.store import InputStore
from pipeline.inputs.uris import redact
from pipeline.inputs.videos import frames_of
from pipeline.storage.objects import StorageError
from pipeline.storage.patience import Patience

Found = list[list[Image.Image] | RowError]
Vector = NDArray[np.float64]

FRAMES = 16  # of a video, evenly spaced
_EMBEDDED_AT_ONCE = 16  # a decoded photo of a phone has 36 MB
_REMEMBERED = 1024  # concepts; renders are sorted by concept, so few are needed again


class PictureSource:
    """Reads images by address, several at a time, under limits."""

    def __init__(self, pool: Executor, inputs: InputStore, patience: Patience) -> None:
        """Bind a pool of threads, the reader, and how long to wait for a storage."""
        self._pool, self._inputs, self._patience = pool, inputs, patience

    def read(self, uris: Sequence[str], digests: Sequence[str] | None = None) -> Found:
        """The frames of each image in order as RGB, one if it is a picture, or why it is unavailable.

        Args:
            uris: absolute addresses.
            digests: hex sha256 that the bytes must have, one per address; None accepts any bytes.

        Raises:
            StorageError: storage fails.
            VideoError: one of them is MP4, which this machine cannot read.
        """
        return list(self._pool.map(self._read_one, uris, repeat(None) if digests is None else digests))

    def _read_one(self, uri: str, sha256: str | None) -> list[Image.Image] | RowError:
        try:
            data = self._patience(lambda: self._bytes(uri, sha256))
            # Only renders are read with a digest. An animation among the photos is refused.
            limits = self._inputs.limits
            return [decode(data, limits)] if sha256 is None else frames_of(data, limits, FRAMES)
        except RowError as error:
            if error.code == Code.STORAGE:
                raise StorageError(str(error)) from error
            return error

    def _bytes(self, uri: str, sha256: str | None) -> bytes:
        if sha256 is None:
            return self._inputs.fetch(uri)
        return self._inputs.read(uri, sha256=sha256, remedy="render it again")


class TrainingMeans:
    """Means of the unit vectors of each concept's photos, or why a concept has none.

    The inner product of a unit vector and a mean is the vector's mean cosine to the photos. A mean is shorter than one.
    """

    def __init__(self, embedder: ImageEmbedder, source: PictureSource, addresses: Mapping[str, Sequence[str]]) -> None:
        """Embed nothing yet; `addresses` are those of photos by concept id."""
        self._embedder, self._source, self._addresses = embedder, source, addresses
        self._known: OrderedDict[str, Vector | RowError] = OrderedDict()

    def of(self, concepts: Mapping[str, str]) -> dict[str, Vector | RowError]:
        """Means by concept key; `concepts` has concept ids by concept key.

        Raises:
            StorageError, ScorerError: storage or the scorer fails for a reason that is not the concept.
        """
        found: dict[str, Vector | RowError] = {}
        for key, name in concepts.items():
            found[key] = self._known.pop(key) if key in self._known else self._mean(name)
            self._known[key] = found[key]
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return found

    def _mean(self, name: str) -> Vector | RowError:
        uris = self._addresses.get(name, ())
        if not uris:
            return RowError(
                Code.IMAGE_MISSING,
                f"the addresses of the photos of concept {name!r} are unknown: "
                "put its row back into the concepts manifest",
            )
        total: NDArray[np.float64] | float = 0.0
        for start in range(0, len(uris), _EMBEDDED_AT_ONCE):
            batch = uris[start : start + _EMBEDDED_AT_ONCE]
            pictures = []
            for uri, picture in zip(batch, self._source.read(batch), strict=True):
                if isinstance(picture, RowError):
                    message = f"a photo of concept {name!r} is unavailable: {picture}"
                    return RowError(picture.code, message if redact(uri) in message else f"{message} ({redact(uri)})")
                pictures += picture
            total = total + self._embedder.embed_images(pictures).astype(np.float64).sum(axis=0)
        return np.asarray(total / len(uris))
