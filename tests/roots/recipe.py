"""A small results root made by the command line alone, and what of it must stay the same from version to version.

    python tests/roots/recipe.py FOLDER [DIGESTS.json]

makes the root in FOLDER with whichever version of the project is first on PYTHONPATH, and writes the digests. The file
`root_before_rooms.json` was written in that way by commit 9c9c2cb, the last one before the packages were divided into
rooms. Only the command line and the files of the root are used, so that the recipe runs on versions with other modules.
The base model is the toy folder beside this file, whose weights are random: keys hold its digest, and the embedded base
may become another one.
"""

import csv
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import yaml

COMMAND = "import sys; from jobs.cli import main; sys.argv[0] = 'perfusion'; main()"
FINISHED_WITH_BAD_ROWS = 3
PRODUCTS = ("mug-00001", "chair-00002", "teddy-00003")
KEYS = {"concepts": "concept_key", "renders": "render_key"}
SPEC = {
    "root": "results",
    "concepts": "concepts.csv",
    "prompts": "prompts.jsonl",
    "base": "base",
    "seed": 7,
    "metric": {"captions": 2000},
    "train": {"steps": 6, "batch": 2},
    "render": {"steps": 3},
    "engine": {"slots": 1, "group_size": 2, "render_batch": 4},
}
PROMPTS = (
    {"prompt": "a photo of a {product} on the beach", "tag": "beach", "rank": 1},
    {"prompt": "a photo of a {product} in the snow", "tag": "snow", "rank": 2, "num_images": 2, "bias": 0.6},
    {"prompt": "a photo of a {mug-00001} next to a {teddy-00003} in the forest", "tag": "pair", "rank": 3},
    {"prompt": "a photo of a {mug-00001} next to a {gone-00004}", "tag": "pair", "rank": 3},
    {"prompt": "a red {product} in the forest", "seed": 11, "where": "season = 'spring'", "lock": "global", "rank": 4},
)


def perfusion(folder, *words):
    """Run a command in `folder`; returns its exit code and what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def make_inputs(folder):
    """A base model, photos of three products, both manifests and the spec. The fourth product's photo is missing."""
    shutil.copytree(Path(__file__).parent / "base", Path(folder, "base"))
    code, _, errors = perfusion(folder, "catalog", "--products", "3", "shop")
    assert code == 0, errors
    rows = [
        {
            "concept_id": name,
            "superclass": name.rpartition("-")[0],
            "images": ";".join(f"shop/images/00000/{name}-{number}.png" for number in range(2)),
            "masks": ";".join(f"shop/masks/00000/{name}-{number}.png" for number in range(2)) if place == 0 else "",
            "train": '{"steps": 4}' if place == 1 else "",
            "price": f"{9 + place}.50",
            "season": ("spring", "summer", "spring")[place],
        }
        for place, name in enumerate(PRODUCTS)
    ]
    bad = {"concept_id": "gone-00004", "superclass": "mug", "images": "shop/none.png", "price": "1.50", "season": "all"}
    with Path(folder, "concepts.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), restval="")
        writer.writeheader()
        writer.writerows([*rows, bad])
    Path(folder, "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    Path(folder, "spec.yaml").write_text(yaml.safe_dump(SPEC))


def make_root(folder):
    """Make the inputs, run them, and return the run's summary."""
    make_inputs(folder)
    code, printed, errors = perfusion(folder, "run", "spec.yaml", "--json")
    assert code == FINISHED_WITH_BAD_ROWS, errors
    return json.loads(printed.strip().splitlines()[-1])


def photos(folder):
    """Digest of the photos: where they differ from those of the recorded root, the keys differ as well."""
    files = sorted(Path(folder, "shop").rglob("*.png"))
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


def describe(folder):
    """Content keys, published schemas, headers of concept files and names of files of a root, as plain values.

    The cache of measured photos is left out: whether it exists depends on how new the photos are.
    """
    root = Path(folder, "results")
    tables = {name: sorted((root / "tables" / name).glob("run_date=2*/**/*.parquet")) for name in KEYS}
    remembered = {name: sorted((root / "tables" / name).glob("run_date=1970*/**/*.parquet")) for name in KEYS}
    return {
        "keys": {
            name: sorted(row for file in files for row in keys_of(file, KEYS[name])) for name, files in tables.items()
        },
        "schemas": {name: [schema_of(file) for file in files] for name, files in tables.items()},
        "remembered_columns": {name: [schema_of(file) for file in files] for name, files in remembered.items()},
        "concepts": {file.stem: header_of(file) for file in sorted(root.glob("weights/*/*.safetensors"))},
        "metrics": {file.stem: header_of(file) for file in sorted(root.glob("metrics/*/*.safetensors"))},
        "picture_texts": sorted({name for file in root.glob("images/*/*.png") for name in png_texts(file)}),
        "files": sorted({name for name in file_names(root) if not name.startswith("cache/")}),
        "json_fields": {file.name: fields(json.loads(file.read_text())) for file in root.glob("runs/*/*.json")},
    }


def keys_of(file, key):
    """Each row's product, status, error code and content key."""
    for row in pq.read_table(file, partitioning=None).to_pylist():
        yield [row["concept_id"], row["status"], row["error_code"] or "", row[key] or ""]


def file_names(root):
    """Paths of files below the root, without the day on which the root was made."""
    for file in root.rglob("*"):
        if file.is_file():
            yield re.sub(r"run_date=2\d{3}-\d\d-\d\d", "run_date=DATE", file.relative_to(root).as_posix())


def schema_of(file):
    """The Arrow schema of a file: name, type and nullability of each column, names of its metadata, and its bytes."""
    schema = pq.read_schema(file)
    return {
        "columns": [[field.name, str(field.type), field.nullable] for field in schema],
        "metadata": sorted(name.decode() for name in schema.metadata or {}),
        "digest": hashlib.sha256(schema.remove_metadata().serialize().to_pybytes()).hexdigest(),
    }


def header_of(file):
    """The header of a safetensors file without numbers that training or estimation rounds."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    rounded = ("loss", "held_out", "metric_digest")
    metadata = header.pop("__metadata__")
    return {
        # safetensors itself writes metadata in a random order; only concept files have one that is fixed.
        "metadata": [[name, "" if name in rounded else value] for name, value in sorted(metadata.items())],
        "tensors": {name: [tensor["dtype"], tensor["shape"]] for name, tensor in header.items()},
    }


def png_texts(file):
    """Names of the text chunks of a PNG file."""
    data, at = file.read_bytes(), 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] in (b"tEXt", b"iTXt", b"zTXt"):
            yield data[at + 8 : at + 8 + length].split(b"\0")[0].decode()
        at += 12 + length


def fields(value):
    """The names of an object's fields, two levels deep; the settings of a spec grow from version to version."""
    return {
        name: sorted(each) if isinstance(each, dict) and name != "settings" else type(each).__name__
        for name, each in value.items()
    }


if __name__ == "__main__":
    home = Path(sys.argv[1])
    home.mkdir(parents=True)
    make_root(home)
    found = {"photos": photos(home), **describe(home)}
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    Path(sys.argv[2]).write_text(text) if len(sys.argv) > 2 else sys.stdout.write(text)
