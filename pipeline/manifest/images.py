"""The photos and masks of one concept or one scene: each is located, inspected, and referred to by URI and digest.

A photo that the manifest holds as bytes is stored once, under its digest, and then referred to like any other.
"""

from collections.abc import Mapping, Sequence

from pipeline.contract.errors import Code, RowError, RowProblem
from pipeline.contract.layout import input_path
from pipeline.contract.messages import show
from pipeline.inputs.pictures import Inspected, Role, inspect
from pipeline.inputs.store import InputStore
from pipeline.inputs.uris import locate, redact, resolve
from pipeline.storage.objects import Storage

Picture = dict[str, str]

_MOST_SEEN = 100_000  # addresses of scenes in memory, about 500 bytes each
_ASPECT_TOLERANCE = 0.02  # a mask may be drawn at another size, but it must show the same frame


class ImageReader:
    """Reads the cells of rows that name photos; threads may share it."""

    def __init__(self, folder: str, storage: Storage, inputs: InputStore) -> None:
        """Bind what all rows share.

        Args:
            folder: the URI that relative paths start from.
            storage: the root, for photos that the manifest carries as bytes.
            inputs: reads all others.
        """
        self._folder = folder
        self._storage = storage
        self._inputs = inputs
        self._limits = inputs.limits
        self._seen: dict[tuple[Role, str], tuple[Picture, Inspected] | RowError] = {}

    def exists(self, address: str) -> bool:
        """Whether there is a file at an address as the manifest has it; False after any error, which `read` reports."""
        try:
            return self._inputs.exists(resolve(address, self._folder))
        except RowError:
            return False

    def read(
        self, images: object, masks: object, problems: list[RowProblem]
    ) -> tuple[list[Picture] | None, list[Picture] | None]:
        """References to a row's photos and masks.

        Args:
            images: the cell of photos.
            masks: the cell of masks; None for a concept without masks.
            problems: extended by the problems of both cells.

        Returns:
            Photos and masks; None and None if there is a problem.

        Raises:
            StorageError: a photo given as bytes cannot be stored.
        """
        before = len(problems)
        photos = self._column("images", "image", images, problems)
        drawn = self._column("masks", "mask", masks, problems) if masks is not None else None
        if len(problems) == before and photos is not None and drawn is not None:
            problems.extend(_mismatches([found for _, found in photos], [found for _, found in drawn]))
        if len(problems) > before:
            return None, None
        return [it for it, _ in photos or ()], None if drawn is None else [it for it, _ in drawn]

    def read_scene(
        self, scene: object, mask: object, problems: list[RowProblem], *, remedy: str
    ) -> dict[str, Picture | None]:
        """References to the scene of a row and its mask, as `scene` and `scene_mask`; null after a problem.

        An address is examined once, because many rows may have the same scene.

        Args:
            scene: the cell of the photo.
            mask: the cell of its mask, or None.
            problems: extended by the problems of both cells.
            remedy: what else may be wrong if there is no such photo.

        Raises:
            StorageError: a photo given as bytes cannot be stored.
        """
        found: dict[str, tuple[Picture, Inspected]] = {}
        cells: tuple[tuple[str, Role, object], ...] = (("scene", "image", scene), ("scene_mask", "mask", mask))
        for column, role, cell in cells:
            if cell is None:
                continue
            try:
                found[column] = self._once(role, cell)
            except RowError as error:
                also = f"; {remedy}" if column == "scene" and error.code == Code.IMAGE_MISSING else ""
                problems.append(RowProblem(error.code, column, f"{column}: {error}{also}"))
        if len(found) == 2:
            problems.extend(_scene_mismatches(found["scene"][1], found["scene_mask"][1]))
        return {column: found[column][0] if column in found else None for column in ("scene", "scene_mask")}

    def read_control(self, picture: object, problems: list[RowProblem]) -> Picture | None:
        """A reference to the picture that a ControlNet follows; None after a problem, which is added to `problems`.

        Raises:
            StorageError: a picture given as bytes cannot be stored.
        """
        try:
            return self._once("image", picture)[0]
        except RowError as error:
            problems.append(RowProblem(error.code, "control_picture", f"control_picture: {error}"))
            return None

    def _once(self, role: Role, cell: object) -> tuple[Picture, Inspected]:
        address = picture_content(cell)
        if not isinstance(address, str):
            return self._one(role, cell)
        seen = self._seen.get((role, address))
        if seen is None:
            try:
                seen = self._one(role, address)
            except RowError as error:
                seen = error
            if len(self._seen) < _MOST_SEEN:
                self._seen[role, address] = seen
        if isinstance(seen, RowError):
            raise seen
        return seen

    def _column(
        self, column: str, role: Role, cell: object, problems: list[RowProblem]
    ) -> list[tuple[Picture, Inspected]] | None:
        try:
            items = _items(column, cell, self._limits.max_images)
        except RowError as error:
            problems.append(RowProblem(error.code, column, str(error)))
            return None
        found = []
        for number, item in enumerate(items, 1):
            try:
                found.append(self._one(role, item))
            except RowError as error:
                name = _name(item)
                label = f"{column}, number {number}" + (f" ({name})" if name and name not in str(error) else "")
                problems.append(RowProblem(error.code, column, f"{label}: {error}"))
        return found

    def _one(self, role: Role, item: object) -> tuple[Picture, Inspected]:
        item = picture_content(item)
        if isinstance(item, str):
            uri = locate(resolve(item, self._folder, presigned=self._limits.presigned))
            found = self._inputs.examine(uri, role)
        elif isinstance(item, bytes):
            found = inspect(item, self._limits, role)
            path = input_path(found.sha256)
            if not self._storage.exists(path):
                self._storage.create(path, item)
            uri = self._storage.uri(path)
        elif item is None:
            raise RowError(Code.MISSING_VALUE, "it is null: give a URI or remove it from the list")
        else:
            raise RowError(Code.WRONG_TYPE, f"it is {_shown(item)}: it must be a URI or the bytes of a picture")
        return {"uri": uri, "sha256": found.sha256, "reading": found.reading}, found


def _items(column: str, cell: object, most: int) -> Sequence[object]:
    if cell is None:
        raise RowError(Code.MISSING_VALUE, f"{column} has no value: list the URIs of the product's photos")
    items: object = [cell] if isinstance(cell, str | bytes | Mapping) else cell
    if not isinstance(items, list):
        raise RowError(Code.WRONG_TYPE, f"{column} is {show(cell)}: it must be a list of URIs or of bytes")
    if not items and column == "images":
        raise RowError(Code.NO_IMAGES, f"{column} is an empty list: three to six photos make a good concept")
    if len(items) > most:
        raise RowError(Code.TOO_MANY_IMAGES, f"{column} lists {len(items)} pictures: keep the best {most} or fewer")
    return items


def picture_content(item: object) -> object:
    """The content of a struct of `bytes` and `path`, as datasets of Hugging Face hold photos; others unchanged."""
    if isinstance(item, Mapping) and item and set(item) <= {"bytes", "path"}:
        data = item.get("bytes")
        if data is None:
            return item.get("path")
        return data if isinstance(data, bytes) else item
    return item


def _name(item: object) -> str:
    item = picture_content(item)
    return redact(item) if isinstance(item, str) else f"{len(item)} bytes" if isinstance(item, bytes) else ""


def _shown(item: object) -> str:
    """A value for a message; a struct without its values, which may be pre-signed addresses."""
    return f"a struct of {', '.join(map(str, item)) or 'nothing'}" if isinstance(item, Mapping) else show(item)


def _mismatches(images: list[Inspected], masks: list[Inspected]) -> list[RowProblem]:
    if len(images) != len(masks):
        message = f"masks has {len(masks)} entries and images {len(images)}: give one mask for each picture, or none"
        return [RowProblem(Code.MASKS_MISMATCH, "masks", message)]
    return [
        RowProblem(
            Code.MASKS_MISMATCH,
            "masks",
            f"masks, number {number}: {mask.width} x {mask.height} pixels do not fit the picture's {image.width} x "
            f"{image.height}: draw the mask on the whole picture",
        )
        for number, (image, mask) in enumerate(zip(images, masks, strict=True), 1)
        if _other_frame(image, mask)
    ]


def _scene_mismatches(scene: Inspected, mask: Inspected) -> list[RowProblem]:
    message = (
        f"scene_mask: {mask.width} x {mask.height} pixels do not fit the scene's {scene.width} x {scene.height}: "
        "draw the mask on the whole scene"
    )
    return [RowProblem(Code.MASKS_MISMATCH, "scene_mask", message)] if _other_frame(scene, mask) else []


def _other_frame(image: Inspected, mask: Inspected) -> bool:
    difference = abs(mask.width * image.height - mask.height * image.width)
    return difference > _ASPECT_TOLERANCE * mask.height * image.width
