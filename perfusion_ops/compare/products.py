"""Products to learn: a folder of photos, sorted by superclass and product."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from perfusion_ops.errors import UsageError

_PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
_MASK = ".mask"


class CompareError(UsageError):
    """A comparison cannot start; the message says what to change."""


@dataclass(frozen=True)
class Product:
    """One product.

    Attributes:
        name: of its folder.
        superclass: of the folder above, with blanks for underscores.
        photos: files in the order of their names.
        masks: for each photo `<stem>.mask.png` beside it, or None.
    """

    name: str
    superclass: str
    photos: tuple[Path, ...]
    masks: tuple[Path | None, ...]

    @property
    def digest(self) -> str:
        """Hex sha256 of superclass, photos and masks."""
        whole = hashlib.sha256(self.superclass.encode())
        for file in (*self.photos, *self.masks):
            whole.update(hashlib.sha256(file.read_bytes()).digest() if file else b"none")
        return whole.hexdigest()

    def pictures(self) -> list[tuple[Image.Image, Image.Image | None]]:
        """Photos in RGB, upright, each with its mask in mode L or None."""
        found: list[tuple[Image.Image, Image.Image | None]] = []
        for photo, mask in zip(self.photos, self.masks, strict=True):
            picture = _upright(photo).convert("RGB")
            drawn = _upright(mask).convert("L") if mask else None
            if drawn and drawn.size != picture.size:
                raise CompareError(f"{mask} has {drawn.size} pixels and its photo {picture.size}: make them equal")
            found.append((picture, drawn))
        return found


def find_products(folder: Path, photos: int) -> list[Product]:
    """The products of `folder/<superclass>/<product>/*.jpg|png|webp`, in the order of a digest of their names.

    Args:
        folder: with a folder per superclass, which has a folder per product.
        photos: that are learned from; more are left out.

    Raises:
        CompareError: there are fewer than two products, or one has no photo.
    """
    found = []
    for home in sorted(path for path in folder.glob("*/*") if path.is_dir()):
        files = sorted(path for path in home.iterdir() if path.suffix.lower() in _PICTURES)
        shown = [path for path in files if not path.stem.endswith(_MASK)][:photos]
        if not shown:
            raise CompareError(f"{home} has no photo: put JPEG, PNG or WebP files there, or remove it")
        masks = [path.with_name(f"{path.stem}{_MASK}.png") for path in shown]
        found.append(
            Product(
                name=home.name,
                superclass=" ".join(home.parent.name.replace("_", " ").split()),
                photos=tuple(shown),
                masks=tuple(mask if mask.is_file() else None for mask in masks),
            )
        )
    if len(found) < 2:
        raise CompareError(
            f"{folder} has {len(found)} products: give at least two, each as {folder.name}/<superclass>/<product>/*.jpg"
        )
    return sorted(found, key=lambda item: hashlib.sha256(f"{item.superclass}/{item.name}".encode()).hexdigest())


def _upright(file: Path) -> Image.Image:
    try:
        return ImageOps.exif_transpose(Image.open(file))
    except OSError as error:
        raise CompareError(f"{file} cannot be read as a picture ({error}): replace or remove it") from error
