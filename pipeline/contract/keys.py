"""Content keys: digests of what a concept or a picture means, never of where it stands in a manifest.

Two forms of one definition stand side by side here: the Python functions are the reference, and `install` gives a
DuckDB connection macros that compute the same digests for millions of rows. Both digest one canonical text:

- a field is its UTF-8 length, a colon and the text; an absent field is `-`; a list is its length, `[`, its fields, `]`.
  No two different inputs share a text, whatever characters they hold;
- a float is its shortest decimal that reads back the same (Python's `repr`, DuckDB's cast), with -0.0 taken as 0.0;
- the text begins with a name and a version: a change of meaning gets a new version, so that no old object is mistaken.

Batch size, worker, ids and the order of manifest rows are in none of them.
"""

import hashlib
import json
import re
from collections.abc import Sequence

import duckdb

from perfusion_ops.config import Frozen, Lock, MetricConfig, Scheduler, TrainingConfig

_CONCEPT = "perfusion concept 1 "
_RENDER = "perfusion render 1 "
_SEED = "perfusion seed 1 "
_METRIC = "perfusion metric 1 "

# Unicode's white space, spelt out because Python's and DuckDB's regular expressions disagree about `\s`.
_SPACE = "[\t-\r\x1c- \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"


def normalise_superclass(superclass: str) -> str:
    """The words of a superclass with one space between them."""
    return re.sub(_SPACE, " ", superclass).strip(" ")


def settings_json(settings: Frozen) -> str:
    """Canonical JSON of complete settings: sorted names, no spaces, -0.0 as 0.0."""
    values = settings.model_dump(mode="json")
    plain = {name: value + 0.0 if isinstance(value, float) else value for name, value in values.items()}
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def metric_key(*, base_digest: str, metric: MetricConfig, captions_sha256: str | None = None) -> str:
    """Key of the metric C of one base model; `captions_sha256` digests the file at `captions_uri` when there is one."""
    return _digest(_METRIC + _text(base_digest) + _text(settings_json(metric)) + _text(captions_sha256))


def picture_field(sha256: str, reading: str | None = None) -> str:
    """The field of one photo or mask in a concept's key: its digest, and how its pixels are read.

    `reading` names a rule that was added later and changed the pixels of the same bytes
    (`pipeline.inputs.headers.Reading`). A photo that no such rule applies to keeps its digest alone.
    """
    return f"{sha256}:{reading}" if reading else sha256


def concept_key(
    *,
    base_digest: str,
    metric_key: str,
    training: TrainingConfig,
    superclass: str,
    images: Sequence[tuple[str, str | None]],
) -> str:
    """Key of a trained concept.

    Args:
        base_digest: digest of the base model.
        metric_key: key of the metric C that the concept is trained under.
        training: the complete settings.
        superclass: its words; white space between them does not matter.
        images: (image, mask or None) pairs in any order, each as `picture_field` writes it.

    Returns:
        64 hex digits.
    """
    pairs = sorted(_text(image) + _text(mask) for image, mask in images)
    return _digest(
        _CONCEPT
        + _text(base_digest)
        + _text(metric_key)
        + _text(settings_json(training))
        + _text(normalise_superclass(superclass))
        + _texts(pairs)
    )


def render_material(
    *,
    base_digest: str,
    concepts: Sequence[str],
    prompt: str,
    negative_prompt: str,
    steps: int,
    guidance: float,
    scheduler: Scheduler,
    width: int | None,
    height: int | None,
    bias: float,
    temperature: float,
    lock: Lock,
    edit_unconditional: bool,
) -> str:
    """Everything that decides a picture except its seed, as canonical text.

    Args:
        base_digest: digest of the base model.
        concepts: concept keys; number n stands where the prompts hold `{n}`.
        prompt: with `{0}`, `{1}`, ... numbered in order of first appearance.
        negative_prompt: with the same numbers.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        scheduler: name of the sampler.
        width: pixels, None for the base model's own size.
        height: pixels, None for the base model's own size.
        bias: bias of the gate.
        temperature: temperature of the gate.
        lock: what fills the key columns.
        edit_unconditional: whether the unconditional rows are edited too.
    """
    return (
        _text(base_digest)
        + _texts(concepts)
        + _text(prompt)
        + _text(negative_prompt)
        + _integer(steps)
        + _number(guidance)
        + _text(scheduler)
        + _integer(width)
        + _integer(height)
        + _number(bias)
        + _number(temperature)
        + _text(lock)
        + _text("true" if edit_unconditional else "false")
    )


def render_key(material: str, seed: int) -> str:
    """Key of a picture: 64 hex digits from `render_material` and the seed."""
    return _digest(_RENDER + material + _integer(seed))


def default_seed(material: str, base_seed: int, image_index: int) -> int:
    """Seed of a picture that asks for none, in [0, 2^31): the same row always gets the same picture."""
    return int(_digest(_SEED + material + _integer(base_seed) + _integer(image_index))[:8], 16) & 0x7FFFFFFF


def install(connection: duckdb.DuckDBPyConnection) -> None:
    """Give a connection the macros `concept_key`, `render_material`, `render_key`, `default_seed` and their parts.

    `render_material` is `render_concepts` and after it `render_text`, which is the same for all concepts.
    `concept_key` takes lists of the pictures' and the masks' fields (see `key_picture`) of equal length, or no masks at
    all; `settings` is the text of `settings_json`.
    """
    connection.execute(_MACROS)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _text(value: str | None) -> str:
    return "-" if value is None else f"{len(value.encode())}:{value}"


def _integer(value: int | None) -> str:
    return _text(None if value is None else str(value))


def _number(value: float) -> str:
    return _text(repr(value + 0.0))


def _texts(values: Sequence[str]) -> str:
    return f"{len(values)}[" + "".join(map(_text, values)) + "]"


_MACROS = f"""
CREATE OR REPLACE TEMP MACRO key_text(value) AS coalesce(strlen(value) || ':' || value, '-');
CREATE OR REPLACE TEMP MACRO key_integer(value) AS key_text(CAST(value AS VARCHAR));
CREATE OR REPLACE TEMP MACRO key_number(value) AS key_text(CAST(CAST(value AS DOUBLE) + 0.0::DOUBLE AS VARCHAR));
CREATE OR REPLACE TEMP MACRO key_texts(items) AS
    len(items) || '[' || array_to_string(list_transform(items, lambda item: key_text(item)), '') || ']';
CREATE OR REPLACE TEMP MACRO normalise_superclass(superclass) AS
    trim(regexp_replace(superclass, '{_SPACE}', ' ', 'g'), ' ');
CREATE OR REPLACE TEMP MACRO key_picture(sha256, reading) AS sha256 || coalesce(':' || nullif(reading, ''), '');
CREATE OR REPLACE TEMP MACRO concept_key(base_digest, metric_key, settings, superclass, images, masks) AS sha256(
    '{_CONCEPT}' || key_text(base_digest) || key_text(metric_key) || key_text(settings)
    || key_text(normalise_superclass(superclass))
    || key_texts(list_sort(list_transform(images, lambda image, i: key_text(image) || key_text(masks[i]))))
);
CREATE OR REPLACE TEMP MACRO render_concepts(base_digest, concepts) AS key_text(base_digest) || key_texts(concepts);
CREATE OR REPLACE TEMP MACRO render_text(
    prompt, negative_prompt, steps, guidance, scheduler, width, height, bias, temperature, lock, edit_unconditional
) AS
    key_text(prompt) || key_text(negative_prompt)
    || key_integer(steps) || key_number(guidance) || key_text(scheduler) || key_integer(width) || key_integer(height)
    || key_number(bias) || key_number(temperature) || key_text(lock) || key_text(CAST(edit_unconditional AS VARCHAR));
CREATE OR REPLACE TEMP MACRO render_material(
    base_digest, concepts, prompt, negative_prompt, steps, guidance, scheduler, width, height,
    bias, temperature, lock, edit_unconditional
) AS render_concepts(base_digest, concepts) || render_text(
    prompt, negative_prompt, steps, guidance, scheduler, width, height, bias, temperature, lock, edit_unconditional);
CREATE OR REPLACE TEMP MACRO render_key(material, seed) AS sha256('{_RENDER}' || material || key_integer(seed));
CREATE OR REPLACE TEMP MACRO default_seed(material, base_seed, image_index) AS
    CAST('0x' || substr(sha256('{_SEED}' || material || key_integer(base_seed) || key_integer(image_index)), 1, 8)
         AS BIGINT) & 2147483647;
"""


def digest(data: bytes) -> str:
    """Hex sha256."""
    return hashlib.sha256(data).hexdigest()
