"""Content keys: digests of everything that determines a concept or a render, and of nothing else.

`install` gives a DuckDB connection macros that compute keys for millions of rows. A key is the sha256 of one canonical
text:

- A field is its UTF-8 length, a colon and the text; an absent field is `-`; a list is its length, `[`, its fields, `]`.
  Different inputs never have the same text, whatever characters they contain.
- A float is its shortest decimal that reads back the same (Python's `repr`, DuckDB's cast); -0.0 is written as 0.0.
- The text begins with a name and a version. A change of meaning needs a new version, so that no old object is taken
  for a new one.

Batch size, worker, ids and the order of manifest rows are in no key. `tests/support/reference_keys.py` defines the same
keys in Python.
"""

import hashlib
import json
import re

import duckdb

from perfusion_ops.config import Frozen, MetricConfig

_CONCEPT = "perfusion concept 1 "
_RENDER = "perfusion render 1 "
_SEED = "perfusion seed 1 "
_METRIC = "perfusion metric 1 "

# Unicode's white space, written out because `\s` of Python and DuckDB differ.
_SPACE = "[\t-\r\x1c- \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"


def normalise_superclass(superclass: str) -> str:
    """The words of a superclass with one space between them."""
    return re.sub(_SPACE, " ", superclass).strip(" ")


def settings_json(settings: Frozen) -> str:
    """Canonical JSON of complete settings: sorted names, no spaces, -0.0 as 0.0.

    Fields of `Frozen.not_in_old_keys` are left out while they have their default, so that older keys stay valid.
    """
    fields = type(settings).model_fields
    values = settings.model_dump(
        mode="json",
        exclude={name for name in settings.not_in_old_keys if getattr(settings, name) == fields[name].default},
    )
    plain = {name: value + 0.0 if isinstance(value, float) else value for name, value in values.items()}
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def metric_key(*, base_digest: str, metric: MetricConfig, captions_sha256: str | None = None) -> str:
    """Key of the metric C of one base model; `captions_sha256` is of the file at `captions_uri`, if one is set."""
    return _digest(_METRIC + _text(base_digest) + _text(settings_json(metric)) + _text(captions_sha256))


def install(connection: duckdb.DuckDBPyConnection) -> None:
    """Give a connection the macros of this module.

    - `concept_key(base_digest, metric_key, settings, superclass, images, masks, start)`: 64 hex digits. `settings` is
      the text of `settings_json`. `images` and `masks` are lists of `key_picture` of equal length, in any order;
      `masks` may be null. `start` is the sha256 of the file that the training starts from; null adds nothing.
    - `key_picture(sha256, reading)`: the field of one photo or mask: its digest, and after a colon how its pixels are
      read, if that is not the plain way (`pipeline.inputs.headers.Reading`).
    - `render_material(...)`: canonical text of everything that determines a render except its seed. It is
      `render_concepts`, followed by `render_text`, which does not depend on the concepts. `modes` are
      `render_modes(regional, strength)`: whether the prompt has several concepts that are combined so, and the
      strength of offsets, 1 if the prompt has none; followed by the modes below. Prompts have
      `{0}`, `{1}`, ... where the concepts are; width and height are null for the base model's own size.
    - `scene_modes(photo, mask, box, strength, keep)`: what a scene adds to `modes`; an empty list without a photo.
      `photo` and `mask` are `key_picture`, `box` is a list of four shares, `keep` is 'product' or null.
    - `sampling_modes(guidance_rescale, guidance, vae_tiling)`: what these settings add to `modes`; an empty list where
      they change nothing.
    - `weight_modes(prompt_weights, prompt, negative_prompt)`: the same for prompts with parentheses, which are weights.
    - `control_modes(digest, picture, strength)`: what a ControlNet adds to `modes`; an empty list without a digest.
      `picture` is `key_picture`.
    - `video_modes(motion, frames)`: what a video adds to `modes`: the digest of its motion adapter and its frames; an
      empty list without frames.
    - `render_file(format, webp_quality, fps)`: what the file adds to the material of a render's key, but not to that of
      its default seed, so that a prompt gives the same picture in each format. PNG adds nothing. `fps` is null for
      pictures.
    - `render_key(material, seed)`: 64 hex digits.
    - `default_seed(material, base_seed, image_index)`: seed of a render that asks for none, in [0, 2^31).
    """
    connection.execute(_MACROS)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _text(value: str | None) -> str:
    return "-" if value is None else f"{len(value.encode())}:{value}"


_MACROS = f"""
CREATE OR REPLACE TEMP MACRO key_text(value) AS coalesce(strlen(value) || ':' || value, '-');
CREATE OR REPLACE TEMP MACRO key_integer(value) AS key_text(CAST(value AS VARCHAR));
CREATE OR REPLACE TEMP MACRO key_number(value) AS key_text(CAST(CAST(value AS DOUBLE) + 0.0::DOUBLE AS VARCHAR));
CREATE OR REPLACE TEMP MACRO key_texts(items) AS
    len(items) || '[' || array_to_string(list_transform(items, lambda item: key_text(item)), '') || ']';
CREATE OR REPLACE TEMP MACRO normalise_superclass(superclass) AS
    trim(regexp_replace(superclass, '{_SPACE}', ' ', 'g'), ' ');
CREATE OR REPLACE TEMP MACRO key_picture(sha256, reading) AS sha256 || coalesce(':' || nullif(reading, ''), '');
CREATE OR REPLACE TEMP MACRO concept_key(base_digest, metric_key, settings, superclass, images, masks, start) AS sha256(
    '{_CONCEPT}' || key_text(base_digest) || key_text(metric_key) || key_text(settings)
    || key_text(normalise_superclass(superclass))
    || key_texts(list_sort(list_transform(images, lambda image, i: key_text(image) || key_text(masks[i]))))
    || CASE WHEN start IS NULL THEN '' ELSE key_text('start ' || start) END
);
CREATE OR REPLACE TEMP MACRO render_concepts(base_digest, concepts, modes) AS
    key_text(base_digest) || key_texts(concepts)
    || array_to_string(list_transform(modes, lambda mode: key_text(mode)), '');
CREATE OR REPLACE TEMP MACRO render_modes(regional, strength) AS
    CASE WHEN regional THEN ['regional'] ELSE [] END
    || CASE WHEN strength <> 1 THEN ['strength ' || CAST(CAST(strength AS DOUBLE) AS VARCHAR)] ELSE [] END;
CREATE OR REPLACE TEMP MACRO scene_modes(photo, mask, box, strength, keep) AS
    CASE WHEN photo IS NULL THEN [] ELSE
        [coalesce('keep ' || keep, 'scene') || ' ' || photo]
        || CASE WHEN mask IS NULL THEN [] ELSE ['mask ' || mask] END
        || CASE WHEN box IS NULL THEN [] ELSE ['box ' || array_to_string(list_transform(box, lambda share:
            CAST(CAST(share AS DOUBLE) + 0.0::DOUBLE AS VARCHAR)), ' ')] END
        || CASE WHEN strength <> 1 THEN ['scene strength ' || CAST(CAST(strength AS DOUBLE) AS VARCHAR)] ELSE [] END
    END;
CREATE OR REPLACE TEMP MACRO sampling_modes(guidance_rescale, guidance, vae_tiling) AS
    CASE WHEN guidance_rescale <> 0 AND guidance > 1
        THEN ['rescale ' || CAST(CAST(guidance_rescale AS DOUBLE) AS VARCHAR)] ELSE [] END
    || CASE WHEN vae_tiling THEN ['vae tiling'] ELSE [] END;
CREATE OR REPLACE TEMP MACRO weight_modes(prompt_weights, prompt, negative_prompt) AS
    CASE WHEN prompt_weights AND (contains(prompt, '(') OR contains(negative_prompt, '('))
        THEN ['prompt weights'] ELSE [] END;
CREATE OR REPLACE TEMP MACRO render_text(
    prompt, negative_prompt, steps, guidance, scheduler, width, height, bias, temperature, lock, edit_unconditional
) AS
    key_text(prompt) || key_text(negative_prompt)
    || key_integer(steps) || key_number(guidance) || key_text(scheduler) || key_integer(width) || key_integer(height)
    || key_number(bias) || key_number(temperature) || key_text(lock) || key_text(CAST(edit_unconditional AS VARCHAR));
CREATE OR REPLACE TEMP MACRO render_material(
    base_digest, concepts, modes, prompt, negative_prompt, steps, guidance, scheduler, width, height,
    bias, temperature, lock, edit_unconditional
) AS render_concepts(base_digest, concepts, modes) || render_text(
    prompt, negative_prompt, steps, guidance, scheduler, width, height, bias, temperature, lock, edit_unconditional);
CREATE OR REPLACE TEMP MACRO control_modes(digest, picture, strength) AS
    CASE WHEN digest IS NULL THEN [] ELSE ['control ' || digest || ' ' || picture]
        || CASE WHEN strength <> 1 THEN ['control strength ' || CAST(CAST(strength AS DOUBLE) AS VARCHAR)] ELSE [] END
    END;
CREATE OR REPLACE TEMP MACRO video_modes(motion, frames) AS
    CASE WHEN frames IS NULL THEN [] ELSE ['video ' || frames || ' ' || motion] END;
CREATE OR REPLACE TEMP MACRO render_file(format, webp_quality, fps) AS
    CASE format WHEN 'png' THEN '' ELSE key_text(format || coalesce(' ' || webp_quality, '')) END
    || CASE WHEN fps IS NULL THEN '' ELSE key_text('fps ' || fps) END;
CREATE OR REPLACE TEMP MACRO render_key(material, seed) AS sha256('{_RENDER}' || material || key_integer(seed));
CREATE OR REPLACE TEMP MACRO default_seed(material, base_seed, image_index) AS
    CAST('0x' || substr(sha256('{_SEED}' || material || key_integer(base_seed) || key_integer(image_index)), 1, 8)
         AS BIGINT) & 2147483647;
"""


def digest(data: bytes) -> str:
    """Hex sha256."""
    return hashlib.sha256(data).hexdigest()
