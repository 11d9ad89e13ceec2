"""Pictures that scores need: rendered ones read and checked, training ones embedded and remembered.

A picture that cannot be had is a `RowError` among the results, never left out. Trouble of the storage itself is
nobody's row: it raises, so that an outage is not written down as a property of pictures.
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
from pipeline.storage.objects import StorageError
from pipeline.storage.patience import Patience

Found = list[Image.Image | RowError]
Vector = NDArray[np.float64]

_EMBEDDED_AT_ONCE = 16  # a phone's photo is 36 MB when decoded
_REMEMBERED = 1024  # concepts; rows come sorted by concept, so few are ever needed again


class PictureSource:
    """Reads pictures by address, several at a time, under limits."""

    def __init__(self, pool: Executor, inputs: InputStore, patience: Patience) -> None:
        """Bind a pool of threads, the reader, and how long to wait for a storage."""
        self._pool, self._inputs, self._patience = pool, inputs, patience

    def read(self, uris: Sequence[str], digests: Sequence[str] | None = None) -> Found:
        """The pictures in order as RGB, or why one of them cannot be had.

        Args:
            uris: absolute addresses.
            digests: hex sha256 that the bytes must have, one for each; any bytes will do without.

        Raises:
            StorageError: the storage itself is in trouble.
        """
        return list(self._pool.map(self._one, uris, repeat(None) if digests is None else digests))

    def _one(self, uri: str, sha256: str | None) -> Image.Image | RowError:
        try:
            return decode(self._patience(lambda: self._bytes(uri, sha256)), self._inputs.limits)
        except RowError as error:
            if error.code == Code.STORAGE:
                raise StorageError(str(error)) from error
            return error

    def _bytes(self, uri: str, sha256: str | None) -> bytes:
        if sha256 is None:
            return self._inputs.fetch(uri)
        return self._inputs.read(uri, sha256=sha256, remedy="render it again")


class TrainingMeans:
    """The mean of the unit vectors of a concept's training pictures, or why there is none.

    A unit vector's product with it is the mean of its cosines to the pictures; the mean itself is shorter than one.
    """

    def __init__(self, embedder: ImageEmbedder, source: PictureSource, addresses: Mapping[str, Sequence[str]]) -> None:
        """Embed nothing yet; `addresses` are those of the training pictures by concept id."""
        self._embedder, self._source, self._addresses = embedder, source, addresses
        self._known: OrderedDict[str, Vector | RowError] = OrderedDict()

    def of(self, concepts: Mapping[str, str]) -> dict[str, Vector | RowError]:
        """Means by concept key, of concepts given as id by key.

        Raises:
            StorageError, ScorerError: the storage or the scorer is in trouble, whatever the concept.
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
                f"where the training pictures of concept {name!r} lie is not known any more: "
                "put its row back into the concepts manifest",
            )
        total: NDArray[np.float64] | float = 0.0
        for start in range(0, len(uris), _EMBEDDED_AT_ONCE):
            batch = uris[start : start + _EMBEDDED_AT_ONCE]
            pictures = []
            for uri, picture in zip(batch, self._source.read(batch), strict=True):
                if isinstance(picture, RowError):
                    message = f"a training picture of concept {name!r} cannot be compared with: {picture}"
                    return RowError(picture.code, message if redact(uri) in message else f"{message} ({redact(uri)})")
                pictures.append(picture)
            total = total + self._embedder.embed_images(pictures).astype(np.float64).sum(axis=0)
        return np.asarray(total / len(uris))
