"""Concept files of a root, checked against the worker's models; the latest ones stay in memory."""

from collections import OrderedDict

from perfusion_ops.concept import Concept
from perfusion_ops.concept_file import ConceptFileError, read_concept
from pipeline.contract.errors import Code, RowError, Status
from pipeline.contract.keys import digest
from pipeline.contract.layout import weights_path
from pipeline.contract.messages import reason
from pipeline.storage.objects import MissingObjectError, Storage
from pipeline.worker.models import Models

# A concept file is tens of kilobytes; a few thousand of them fit beside any model.
_CONCEPTS_KEPT = 4096


class ConceptFiles:
    """Reads concepts by key."""

    def __init__(self, storage: Storage, models: Models) -> None:
        self._storage = storage
        self._models = models
        self._kept: OrderedDict[str, tuple[Concept, str]] = OrderedDict()

    def clear(self) -> None:
        """Forget the concepts in memory."""
        self._kept.clear()

    def check(self, key: str, data: bytes) -> Concept:
        """The concept in the bytes of a file.

        Raises:
            ConceptFileError: damaged, of another key, or of another base model or metric.
        """
        base = self._models.base
        return read_concept(
            data,
            base_digest=base.folder.digest,
            metric_digest=self._models.metric.digest,
            embedding_width=base.embedding_width,
            text_width=base.text_width,
            value_width=base.stack.key_rows,
            key=key,
        )

    def load(self, key: str, name: str | None = None) -> tuple[Concept, str]:
        """A concept and the sha256 of its file; `name` is the concept's id, for messages.

        A damaged file is deleted, so that the next run trains the concept again.

        Raises:
            RowError: the file is missing or damaged.
            StorageError: it cannot be read.
        """
        if key not in self._kept:
            try:
                data = self._storage.read(weights_path(key))
                self._kept[key] = (self.check(key, data), digest(data))
            except (ConceptFileError, MissingObjectError) as error:
                if isinstance(error, ConceptFileError):
                    self._storage.delete(weights_path(key))
                who = f"concept {name!r}" if name else f"the concept with key {key[:12]}..."
                message = f"the weights of {who} cannot be used: {reason(error)}; run again to train a new one"
                raise RowError(Code.WEIGHTS_INVALID, message, status=Status.FAILED) from error
            while len(self._kept) > _CONCEPTS_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]
