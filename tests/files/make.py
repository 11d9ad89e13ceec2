"""Gallery files that are made on the spot: too large to keep, or links, which an archive may not carry."""

from collections.abc import Callable
from pathlib import Path

PROMPTS = "prompt,k\na {{product}},{}\n"


def _long_cell(path: Path) -> None:
    path.write_text("prompt,note\na {product}," + "x" * 200_000 + "\nb {product},y\n")


def _too_long_cell(path: Path) -> None:
    path.write_text('prompt,note\na {product},x\nb {product},"' + "x" * 2**24 + '"\nc {product},y\n')


def _too_long_line(path: Path) -> None:
    path.write_text('{"prompt": "{product}"}\n{"prompt": "' + "x" * 2**24 + '"}\n{"prompt": "{product}"}\n')


def _files(folder: Path, names: dict[str, str]) -> None:
    for name, text in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def _linked_folders(folder: Path) -> None:
    _files(folder, {"day1/p.csv": PROMPTS.format("x"), ".store/p.csv": PROMPTS.format("z")})
    _files(folder.parent / "made-elsewhere", {"p.csv": PROMPTS.format("y")})
    (folder / "day2").symlink_to("../made-elsewhere")
    (folder / "day3").symlink_to(".store")


def _link_to_nowhere(folder: Path) -> None:
    _files(folder, {"day1/p.csv": PROMPTS.format("x")})
    (folder / "day2").symlink_to("../gone")


def _link_back(folder: Path) -> None:
    _files(folder, {"day1/p.csv": PROMPTS.format("x")})
    (folder / "day1" / "up").symlink_to("..")


def _config_map(folder: Path) -> None:
    _files(folder, {"..2026_11_26/p.csv": PROMPTS.format("x")})
    (folder / "..data").symlink_to("..2026_11_26")
    (folder / "p.csv").symlink_to("..data/p.csv")


def _spark_output(folder: Path) -> None:
    left = (
        ".DS_Store",
        ".ipynb_checkpoints/p-checkpoint.csv",
        "_SUCCESS",
        "_delta_log/0.json",
        "_temporary/0/p.csv",
        "_year=2026/.part-0.csv.crc",
        "Thumbs.db",
        "half.csv.tmp",
        "~$book.xlsx",
    )
    _files(folder, dict.fromkeys(left, PROMPTS.format("old")))
    _files(folder, {"_year=2026/p.csv": PROMPTS.format("x"), "_year=2027/p.csv": PROMPTS.format("y")})


# Path below the gallery, and what puts it there.
MADE: dict[str, Callable[[Path], object]] = {
    "manifests/made-cell-of-200000-characters.csv": _long_cell,
    "manifests/made-cell-over-the-limit.csv": _too_long_cell,
    "manifests/made-line-over-the-limit.jsonl": _too_long_line,
    "manifests/made-linked-folders": _linked_folders,
    "manifests/made-link-to-nowhere": _link_to_nowhere,
    "manifests/made-link-back": _link_back,
    "manifests/made-config-map": _config_map,
    "manifests/made-spark-output": _spark_output,
}


def make_all(folder: Path) -> None:
    """Write every made file below `folder`, a copy of the gallery."""
    for name, make in MADE.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
