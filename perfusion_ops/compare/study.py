"""What is compared: one training of one method with one setting on one product, and the pictures drawn from it.

Each is a Parquet file whose name has a digest of all that decides its rows, so that an interrupted comparison resumes.
"""

import hashlib
import io
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from perfusion_ops.compare.methods import Contestant, Studio
from perfusion_ops.compare.products import Product
from perfusion_ops.config import Frozen, TrainingConfig
from perfusion_ops.rivals.objective import Budget
from perfusion_ops.rivals.personalised import Personalised
from perfusion_ops.scoring.protocols import DualEmbedder, ImageEmbedder
from perfusion_ops.training.examples import make_example

PROMPTS = (
    "a photo of a {} on the beach", "a photo of a {} in the snow", "a photo of a {} in the jungle",
    "a photo of a {} on a wooden floor", "a photo of a {} with a city in the background",
    "a photo of a {} on top of a purple rug in a forest", "a photo of a {} on a marble table",
    "a photo of a {} in a kitchen", "a photo of a {} under a Christmas tree", "a photo of a {} floating on water",
    "a photo of a {} beside a bowl of fruit", "a photo of a {} next to a cup of coffee",
    "a closeup of a {} on a white background", "a {} seen from above on grass", "a photo of a red {} in a studio",
    "a photo of a blue {} on a shelf", "a watercolor painting of a {}", "a pencil drawing of a {}",
    "a photo of a tiny {} in a hand", "a photo of a {} at night under a street lamp",
)  # fmt: skip


class Amounts(Frozen):
    """How much is drawn and trained.

    Attributes:
        prompts: each with `{}` for the product.
        seeds: pictures of each prompt.
        steps: denoising steps of a picture.
        guidances: guidance scales that are drawn from each training.
        budget: of each training.
    """

    prompts: tuple[str, ...] = PROMPTS
    seeds: int = 1
    steps: int = 30
    guidances: tuple[float, ...] = (4.5, 7.5)
    budget: Budget = Budget(steps=400)


class Picture(Frozen):
    """The scores of one picture, and what it cost.

    Attributes:
        guidance, prompt, seed: how it was drawn.
        identity: mean cosine to the product's photos.
        nearest: the mean of the product's photos is nearer than that of any other product.
        text: cosine to the prompt with the superclass.
        train_s, draw_s: seconds of the training, and of the picture.
        numbers, size: that were learned, and bytes of their file.
    """

    guidance: float
    prompt: str
    seed: int
    identity: float
    nearest: bool
    text: float
    train_s: float
    draw_s: float
    numbers: int
    size: int


_SCHEMA = pa.schema(
    [
        ("method", pa.string()), ("settings", pa.string()), ("product", pa.string()), ("superclass", pa.string()),
        ("guidance", pa.float64()), ("prompt", pa.string()), ("seed", pa.int64()), ("identity", pa.float64()),
        ("nearest", pa.bool_()), ("text", pa.float64()), ("train_s", pa.float64()), ("draw_s", pa.float64()),
        ("numbers", pa.int64()), ("size", pa.int64()), ("picture", pa.binary()),
    ]
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Judges:
    """Scorers, and the products that pictures are compared with.

    Attributes:
        image: compares pictures with photos.
        text: compares pictures with prompts.
        products: all of the comparison.
        digest: of the scorers.
    """

    image: ImageEmbedder
    text: DualEmbedder
    products: tuple[Product, ...]
    digest: str

    def photos(self, item: Product) -> NDArray[np.float32]:
        """Embeddings of a product's photos, (N, D)."""
        return self.image.embed_images([np.asarray(picture) for picture, _ in item.pictures()])

    def means(self) -> NDArray[np.float32]:
        """The mean photo of each product as a unit vector, (P, D)."""
        means = np.stack([self.photos(item).mean(0) for item in self.products])
        return means / np.linalg.norm(means, axis=1, keepdims=True)


@dataclass(frozen=True, eq=False)
class Study:
    """A comparison on one base model.

    Attributes:
        studio: the base model in both forms.
        base: digest of its folder.
        judges: the scorers.
        means: `judges.means()`.
        amounts: how much.
        out: folder of the files.
    """

    studio: Studio
    base: str
    judges: Judges
    means: NDArray[np.float32]
    amounts: Amounts
    out: Path

    def file(self, method: Contestant, place: int, item: Product) -> Path:
        """Where the rows of one training are."""
        decisive = [
            1, self.base, self.judges.digest, sorted(each.digest for each in self.judges.products), item.digest,
            method.settings[place].model_dump(mode="json"), self.amounts.model_dump(mode="json"),
            self.studio.base.folder.settings.mask_layers,
        ]  # fmt: skip
        digest = hashlib.sha256(json.dumps([method.name, *decisive]).encode()).hexdigest()[:16]
        return self.out / "rows" / f"{method.name}-{place}-{item.name[:40]}-{digest}.parquet"

    def measure(self, method: Contestant, place: int, item: Product) -> bool:
        """Train and draw, unless the file exists; returns whether it did not."""
        file = self.file(method, place, item)
        if file.is_file():
            return False
        start = time.perf_counter()
        example = make_example(self.studio.base, item.superclass, item.pictures(), TrainingConfig())
        learned = method.train(self.studio, example, self.amounts.budget, method.settings[place])
        train_s = time.perf_counter() - start
        rows: list[dict[str, Any]] = []
        for guidance in self.amounts.guidances:
            rows += self._drawn(learned, item, guidance, train_s)
        same = {
            "method": method.name,
            "settings": method.settings[place].model_dump_json(),
            "product": item.name,
            "superclass": item.superclass,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        pq.write_table(pa.Table.from_pylist([same | row for row in rows], schema=_SCHEMA), part, compression="zstd")
        part.replace(file)
        return True

    def rows(self, method: Contestant, place: int, item: Product, guidance: float) -> list[Picture]:
        """What was measured of one training at one guidance scale.

        Raises:
            FileNotFoundError: it is not measured.
        """
        table = pq.read_table(self.file(method, place, item), columns=list(Picture.model_fields))
        return [Picture.model_validate(row) for row in table.to_pylist() if row["guidance"] == guidance]

    def _drawn(self, learned: Personalised, item: Product, guidance: float, train_s: float) -> list[dict[str, Any]]:
        asked = [(prompt, seed) for prompt in self.amounts.prompts for seed in range(self.amounts.seeds)]
        prompts, seeds = [prompt for prompt, _ in asked], [100 * n + seed for n, (_, seed) in enumerate(asked)]
        start = time.perf_counter()
        pictures = learned.draw(prompts, seeds, guidance=guidance, steps=self.amounts.steps)
        draw_s = (time.perf_counter() - start) / len(asked)
        seen, by_text = self.judges.image.embed_images(pictures), self.judges.text.embed_images(pictures)
        told = self.judges.text.embed_texts([prompt.replace("{}", item.superclass) for prompt in prompts])
        own, place = self.judges.photos(item), self.judges.products.index(item)
        found = []
        for n, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            picture = Picture(
                guidance=guidance,
                prompt=prompt,
                seed=seed,
                identity=float((own @ seen[n]).mean()),
                nearest=bool((self.means @ seen[n]).argmax() == place),
                text=float(told[n] @ by_text[n]),
                train_s=train_s,
                draw_s=draw_s,
                numbers=learned.numbers,
                size=learned.size,
            )
            found.append(picture.model_dump() | {"picture": _png(pictures[n])})
        return found


def _png(picture: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()
