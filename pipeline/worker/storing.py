"""Finished renders under the root: encoded and written by a few threads, beside the drawing of the next ones.

Both zlib and a socket let other threads run, so a batch takes little longer than its slowest picture.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.contract.layout import image_path
from pipeline.contract.units import Outcome
from pipeline.storage.objects import MissingObjectError, Storage, StorageError
from pipeline.worker.outcomes import failed, ok
from pipeline.worker.provenance import answers, encode_render
from pipeline.worker.settings import Encoding

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Picture:
    """A drawn render that is not written yet.

    Attributes:
        key: its content key.
        pixels: (H, W, 3) uint8, RGB; of a video (F, H, W, 3).
        weights: sha256 of each concept file, in the order of the task's concepts.
        scene: sha256 of the photo of which a part stays; None if all of it is drawn.
        fps: frames a second of a video; None for a picture.
    """

    key: str
    pixels: NDArray[np.uint8]
    weights: tuple[str, ...]
    scene: str | None = None
    fps: int | None = None


class PictureStore:
    """The pictures of a root, as one worker writes them. Its methods may be called from several threads at once."""

    def __init__(
        self,
        storage: Storage,
        encoding: Encoding,
        *,
        base_digest: str,
        threads: int,
        motion_digest: str | None = None,
    ) -> None:
        """Start the threads when they are needed.

        Args:
            storage: the root; retries transient errors.
            encoding: of the files.
            base_digest: digest of the base model.
            threads: pictures at once.
            motion_digest: digest of the motion adapter, if videos are drawn.
        """
        self._storage, self._encoding, self._base_digest = storage, encoding, base_digest
        self._motion_digest = motion_digest
        # Two pools: the unit that is drawn next looks for its files while the one before it is written.
        self._writing = ThreadPoolExecutor(threads, thread_name_prefix="write")
        self._finding = ThreadPoolExecutor(threads, thread_name_prefix="find")

    def find(self, keys: Sequence[str]) -> dict[str, Outcome]:
        """Outcomes of the renders that an earlier attempt wrote, and of those whose object cannot be read."""
        found = _together(self._finding, self._find, keys)
        return {key: outcome for key, outcome in zip(keys, found, strict=True) if outcome is not None}

    def store(self, pictures: Sequence[Picture]) -> Mapping[str, Outcome]:
        """Write pictures; the outcome of each by its key, when all of them are written or have failed."""
        stored = _together(self._writing, self._store, pictures)
        return {outcome.key: outcome for outcome in stored}

    def close(self) -> None:
        """End the threads, after what they do."""
        self._writing.shutdown()
        self._finding.shutdown()

    def _find(self, key: str) -> Outcome | None:
        path = self._path(key)
        try:
            data = self._storage.read(path)
        except MissingObjectError:
            return None
        except StorageError as error:
            return failed("render", key, error)
        return ok("render", key, self._storage.uri(path), data) if answers(data, key, self._encoding.format) else None

    def _store(self, picture: Picture) -> Outcome:
        path = self._path(picture.key)
        data = encode_render(
            picture.pixels,
            render_key=picture.key,
            weights=picture.weights,
            scene=picture.scene,
            fps=picture.fps,
            motion=self._motion_digest,
            base_digest=self._base_digest,
            encoding=self._encoding,
        )
        try:
            self._storage.write(path, data)
        except StorageError as error:
            return failed("render", picture.key, error)
        return ok("render", picture.key, self._storage.uri(path), data)

    def _path(self, key: str) -> str:
        return image_path(key, self._encoding.format)


def _together(threads: Executor, call: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """What a call returns for each item, in their order; an exception is raised when no call is running any more."""
    futures = [threads.submit(call, item) for item in items]
    wait(futures)
    return [future.result() for future in futures]
