"""A shop that changes every night, what each re-render of it must do, and a worker that keeps a record of its work."""

import functools
import hashlib
import io
import json
import os
import random
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from pipeline.contract.kinds import Counts
from pipeline.contract.layout import image_path, weights_path
from pipeline.contract.units import ConceptTask
from pipeline.run import Engine
from pipeline.worker.outcomes import ok
from tests.support.runs import InProcess, Killed, manifest

UNIT_S = 1.0  # by the fake clock
SUPERCLASSES = ("mug", "bag", "shoe", "hat")


class Concept(NamedTuple):
    """All that the weights of a product depend on."""

    superclass: str
    photo: int


class Render(NamedTuple):
    """All that a render depends on."""

    concept: Concept
    prompt: str
    seed: int


def encoded(content):
    """The object of a content: the content itself, so that an object under the wrong key is seen."""
    return json.dumps(content).encode()


@functools.cache
def picture(number):
    """A photo of its own for each number."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (number >> 16, number >> 8 & 255, number & 255)).save(file, "PNG")
    return file.getvalue()


def number_of(data):
    red, green, blue = Image.open(io.BytesIO(data)).getpixel((0, 0))
    return red << 16 | green << 8 | blue


class Shop:
    """Products with a photo each, and two prompts that are rendered for all of them."""

    def __init__(self, folder, products, seed):
        self.folder = folder
        self.random = random.Random(seed)
        self.stock = {}
        self.removed = {}
        self.photos = {}  # of each product, the oldest first
        self.written = 0
        self.named = 0
        self.prompts = [("a photo of a {product} on the beach", 1), ("a {product} in the snow", 2)]
        for _ in range(products):
            self._add_new()

    def change(self, share, copied):
        """As many changes as this share of the products; returns their number.

        A second entry is made of contents in `copied` alone: when two rows ask for the same new object, either of
        them may give the reason.
        """
        names = self.random.sample(sorted(self.stock), round(share * len(self.stock)))
        kinds = {
            self._new_photo: 8,
            self._former_photo: 3,
            self._superclass: 6,
            self._remove: 6,
            self._add_new: 2,
            self._return: 2,
            partial(self._copy, copied): 2,
        }
        for name in names:
            [kind] = self.random.choices(list(kinds), list(kinds.values()))
            kind(name)
        return len(names)

    def save(self):
        """Write the manifests; the order of products differs from night to night, as in an export without an order."""
        names = list(self.stock)
        self.random.shuffle(names)
        self.stock = {name: self.stock[name] for name in names}
        rows = [
            {"concept_id": name, "superclass": concept.superclass, "images": [f"{name}.png"]}
            for name, concept in self.stock.items()
        ]
        manifest(self.folder / "concepts.parquet", rows)
        manifest(self.folder / "prompts.parquet", [{"prompt": text, "seed": seed} for text, seed in self.prompts])

    def concepts(self):
        """(product, content) of each concepts row."""
        return list(self.stock.items())

    def renders(self):
        """(product, prompts row, content) of each render."""
        return [
            (name, row, Render(concept, text.replace("{product}", "{0}"), seed))
            for row, (text, seed) in enumerate(self.prompts, 1)
            for name, concept in self.stock.items()
        ]

    def _put(self, name, concept):
        self.stock[name] = concept
        self.photos.setdefault(name, []).append(concept.photo)
        path = self.folder / f"{name}.png"
        path.write_bytes(picture(concept.photo))
        # Photos that were written in the last seconds are not cached, and each version needs a time of its own.
        self.written += 1
        os.utime(path, (1.6e9 + self.written, 1.6e9 + self.written))

    def _unseen(self):
        return self.written + 1

    def _add_new(self, *_):
        self.named += 1
        self._put(f"product-{self.named}", Concept(self.random.choice(SUPERCLASSES), self._unseen()))

    def _return(self, other):
        """A product that was removed is sold again."""
        if self.removed:
            name = self.random.choice(sorted(self.removed))
            self._put(name, self.removed.pop(name))
        else:
            self._add_new()

    def _copy(self, copied, other):
        """A second entry of a product: equal content under another name."""
        if self.stock[other] in copied:
            self.named += 1
            self._put(f"product-{self.named}", self.stock[other])
        else:
            self._add_new()

    def _remove(self, name):
        self.removed[name] = self.stock.pop(name)

    def _new_photo(self, name):
        self._put(name, self.stock[name]._replace(photo=self._unseen()))

    def _former_photo(self, name):
        self._put(name, self.stock[name]._replace(photo=self.random.choice(self.photos[name])))

    def _superclass(self, name):
        others = [each for each in SUPERCLASSES if each != self.stock[name].superclass]
        self._put(name, self.stock[name]._replace(superclass=self.random.choice(others)))


class Needs:
    """What is needed, by content alone."""

    def __init__(self):
        self.objects = set()
        self.published = set()
        self.products = {}  # the content of each product when it was last published
        self.places = {}  # the last render of each product and prompt
        self.rows = set()  # product and prompts row of all renders so far

    def counts(self, contents):
        """The counts of a plan with these rows."""
        there = sum(content in self.objects for content in contents)
        keys = set(contents)
        return Counts(len(contents), 0, there, len(contents) - there, len(keys), len(keys - self.objects))

    def concept_reasons(self, shop):
        reasons = {}
        for name, content in shop.concepts():
            if content not in self.objects:
                reasons[content] = self._concept_reason(name, content)
        return Counter(reasons.values())

    def render_reasons(self, shop):
        reasons = {}
        for name, row, content in shop.renders():
            if content not in self.objects:
                reasons[content] = self._render_reason(name, row, content)
        return Counter(reasons.values())

    def publish(self, shop):
        for name, content in shop.concepts():
            self.products[name] = content
            self.published.add(content)
        for name, row, content in shop.renders():
            self.places[name, content.prompt] = content
            self.rows.add((name, row))
            self.published.add(content)
        self.objects |= {content for *_, content in shop.concepts() + shop.renders()}

    def _concept_reason(self, name, content):
        if content in self.published:
            return "object gone"
        if name not in self.products:
            return "new"
        return "superclass" if self.products[name].superclass != content.superclass else "pictures or training"

    def _render_reason(self, name, row, content):
        if content in self.published:
            return "object gone"
        before = self.places.get((name, content.prompt))
        if before:
            return "weights" if before.concept != content.concept else "settings"
        return "prompt" if (name, row) in self.rows else "new"


class RecordingWorker:
    """Writes the object of each task that it is given, unless it exists, as real workers do; trains nothing.

    Attributes:
        made: contents whose object it wrote.
        adopted: contents whose object was there.
        objects: file of each content.
        keys: key of each content.
        dies_after: it is killed when `made` is so long, and from then on nothing can be written.
        on_unit: called before the second unit of an engine.
    """

    def __init__(self, root, clock):
        self.root = Path(root)
        self.clock = clock
        self.made, self.adopted = [], []
        self.objects, self.keys = {}, {}
        self.dies_after = None
        self.on_unit = None
        self.engines = 0
        self.units = 0

    @contextmanager
    def engine(self, _):
        self.engines += 1
        self.units = 0
        yield Engine(_OneSlot(self), lambda: None)

    def run(self, unit):
        self.units += 1
        self.clock.now += UNIT_S
        if self.on_unit and self.units == 2:
            self.on_unit()
        return [replace(self._outcome(task), batch=len(unit.tasks), worker="recorder") for task in unit.tasks]

    def close(self):
        pass

    def is_dead(self):
        return self.dies_after is not None and len(self.made) >= self.dies_after

    def _outcome(self, task):
        if isinstance(task, ConceptTask):
            kind, path, content = "concept", weights_path(task.key), self._concept(task)
        else:
            [weights] = task.concepts
            superclass, photo = json.loads((self.root / weights_path(weights)).read_bytes())
            kind, path = "render", image_path(task.key)
            content = Render(Concept(superclass, photo), task.prompt, task.seed)
        assert self.keys.setdefault(content, task.key) == task.key
        file, data = self.root / path, encoded(content)
        if file.exists() and file.read_bytes() == data:
            self.adopted.append(content)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            self.made.append(content)
            self.objects[content] = file
            if self.is_dead():
                raise Killed
        outcome = ok(kind, task.key, f"file://{file}", data, loss=0.1 if kind == "concept" else None)
        return replace(outcome, accelerator_s=UNIT_S, finished_at=self.clock.wall())

    def _concept(self, task):
        [image] = task.images
        data = Path(image.uri.removeprefix("file://")).read_bytes()
        assert hashlib.sha256(data).hexdigest() == image.sha256
        return Concept(task.superclass, number_of(data))


class _OneSlot(InProcess):
    """An engine whose only worker is given."""

    def __init__(self, worker):
        self.worker = worker
        super().__init__(None)

    def replace(self, slot):
        self.workers[slot] = self.worker
