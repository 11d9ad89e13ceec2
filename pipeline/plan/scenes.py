"""The scenes of requests: SQL that finds the photo of each, and the kept photo of a product in the concepts manifest.

A request with `keep` takes photo number `keep_photo`, or the first one, of its only concept, and the mask of this
photo. A concept without it is a fault of its own renders alone. The concept's weights are not used: a product that is
in the picture already must not be drawn beside itself, so the prompt has its superclass in the placeholder's place.
"""

import duckdb

from pipeline.contract.errors import Code

# Photos and masks of good concepts, if a row asks for them: else the table is empty, and joins with it cost nothing.
_CONCEPT_PHOTOS = """
CREATE OR REPLACE TEMP TABLE concept_photos AS
SELECT concept_id AS photos_of, images AS kept_images, masks AS kept_masks,
    normalise_superclass(superclass) AS kept_superclass FROM concepts
WHERE error_code IS NULL AND EXISTS (FROM prompts WHERE keep IS NOT NULL AND error_code IS NULL)
"""

# The columns of a row of prompts that the tables show, also if the row is bad.
CELLS = "scene, scene_mask, scene_box, scene_strength, keep"

# The problem of a row of `chunk` that names several products: which of them would stay?
PROBLEM = f"""
SELECT row, 1000005, 'keep', '{Code.SCENE_CONFLICT}',
    'keep is ''' || keep || ''', but the row names ' || list_unique(names) || ' products: name one, whose photo is kept'
FROM chunk WHERE keep IS NOT NULL AND list_unique(names) > 1
"""

# `framed`: the requests with the photo of which a part stays.
FRAMED = f"""
SELECT d.* EXCLUDE (keep_photo) REPLACE (
        CASE WHEN keep IS NULL THEN scene ELSE kept_images[number] END AS scene,
        CASE WHEN keep IS NULL THEN scene_mask ELSE kept_masks[number] END AS scene_mask,
        CASE WHEN keep IS NOT NULL OR scene IS NOT NULL THEN coalesce(scene_strength, 1) END AS scene_strength,
        CASE WHEN keep IS NULL THEN owns ELSE sizes END AS owns,
        CASE WHEN keep IS NULL THEN trains ELSE [] END AS trains,
        CASE WHEN keep IS NULL THEN strength ELSE 1 END AS strength
    ),
    kept_superclass,
    CASE WHEN keep IS NULL THEN NULL
        WHEN number > len(kept_images) THEN {{'error_code': '{Code.OUT_OF_RANGE}', 'error_column': 'keep_photo',
            'error_message': 'keep_photo is ' || number || ', but concept ''' || ids[1] || ''' has ' || len(kept_images)
                || ' photos: choose one of them'}}
        WHEN kept_masks IS NULL THEN {{'error_code': '{Code.MISSING_VALUE}', 'error_column': 'keep',
            'error_message': 'keep is ''' || keep || ''', but concept ''' || ids[1] || ''' has no masks in the '
                || 'concepts manifest: add them, or leave the concept out with where'}} END AS bad_scene
FROM (SELECT *, coalesce(keep_photo, 1) AS number FROM dialled) d
LEFT JOIN concept_photos p ON d.keep IS NOT NULL AND p.photos_of = d.ids[1]
"""

# Of a request in `judged`: the words that `keep` puts into the placeholder's place make the prompt too long.
TOO_LONG = f"""
CASE WHEN keep IS NOT NULL AND own_count > $limit - slack THEN {{'error_code': '{Code.PROMPT_TOO_LONG}',
    'error_column': 'prompt', 'error_message': 'prompt has ' || own_count || ' tokens with start and end for concept '''
        || ids[1] || ''': keep ''' || keep || ''' reads the superclass instead of the placeholder, and the base model '
        || 'reads ' || ($limit - slack) || ' tokens; shorten the superclass or ' || shown(prompt)}} END
"""

# What the scene of a request adds to the modes of its key.
MODES = """
scene_modes(key_picture(scene.sha256, scene.reading), key_picture(scene_mask.sha256, scene_mask.reading), scene_box,
    scene_strength, keep)
"""


def find_photos(connection: duckdb.DuckDBPyConnection) -> bool:
    """Fill the temporary table `concept_photos`.

    Args:
        connection: of a PlanDB with both manifests, and with the macros of `pipeline.contract.keys`.

    Returns:
        Whether a row keeps a product.
    """
    connection.execute(_CONCEPT_PHOTOS)
    [(keeps,)] = connection.execute("SELECT EXISTS (FROM concept_photos)").fetchall()
    return bool(keeps)
