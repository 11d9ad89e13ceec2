"""What rows of prompts say about ControlNets, videos and guidance: SQL of their cells, problems and keys."""

from collections.abc import Mapping

import duckdb
import pyarrow as pa

from pipeline.contract.errors import Code

# The columns of a row of prompts that the tables show, also if the row is bad.
CELLS = "control, control_picture, control_strength, guidance_rescale, frames, fps"

# In `chunk`: a row's own cells, and the values of the spec where a row has none. Pictures have neither frames nor fps.
OWN = "frames AS own_frames, fps AS own_fps, guidance_rescale AS own_guidance_rescale"
VALUES = """
    coalesce(guidance_rescale, $guidance_rescale::DOUBLE) AS guidance_rescale,
    CASE WHEN $task = 'video' THEN coalesce(frames, $frames) END AS frames,
    CASE WHEN $task = 'video' THEN coalesce(fps, $fps) END AS fps,
    CASE WHEN control IS NOT NULL THEN coalesce(control_strength, 1) END AS control_strength
"""

# Problems of rows of `chunk`.
PROBLEMS = f"""
SELECT row, 1000006, 'control', '{Code.OUT_OF_RANGE}', 'control is ''' || control || ''', and the spec '
    || coalesce('has controls ' || (SELECT string_agg(name, ', ' ORDER BY name) FROM known_controls)
        || ': write one of them, or add it to controls', 'has no controls: add it, or leave the cell empty')
FROM chunk WHERE control IS NOT NULL AND control_digest IS NULL
UNION ALL
SELECT row, 1000007, name, '{Code.OUT_OF_RANGE}', name || ' is ' || value
    || ', but render.task is ''picture'': set it to ''video'' in the spec, or leave the cell empty'
FROM (UNPIVOT (SELECT row, own_frames AS frames, own_fps AS fps FROM chunk WHERE frames IS NULL)
    ON frames, fps INTO NAME name VALUE value)
UNION ALL
SELECT row, 1000008, name, '{Code.SCENE_CONFLICT}', 'the row has ' || name || ', but render.task is ''video'', and '
    || 'videos are drawn from their prompt alone: leave ' || name || ' empty, or draw pictures'
FROM (UNPIVOT (SELECT row, scene.uri AS scene, keep, control FROM chunk WHERE frames IS NOT NULL)
    ON scene, keep, control INTO NAME name VALUE value)
UNION ALL
SELECT row, 1000009, 'guidance_rescale', '{Code.OUT_OF_RANGE}', 'guidance_rescale is ' || own_guidance_rescale
    || ', but what draws here has no such setting: leave the cell empty'
FROM chunk WHERE own_guidance_rescale <> 0 AND NOT $rescales
UNION ALL
SELECT row, 1000010, 'frames', '{Code.OUT_OF_RANGE}', 'frames is ' || own_frames
    || ', and the motion adapter draws at most ' || $most_frames || ': write a smaller number'
FROM chunk WHERE own_frames > $most_frames::INTEGER AND frames IS NOT NULL
UNION ALL
SELECT row, 1000011, 'guidance_rescale', '{Code.OUT_OF_RANGE}', 'guidance_rescale is ' || guidance_rescale
    || ', which ControlNets do not have: write 0 into the cell, or leave control empty'
FROM chunk WHERE guidance_rescale <> 0 AND $rescales AND control IS NOT NULL
"""

# What they add to the modes of a render's key.
MODES = """
    control_modes(control_digest, key_picture(control_picture.sha256, control_picture.reading), control_strength)
    || video_modes($motion_digest, frames)
"""


def name_controls(connection: duckdb.DuckDBPyConnection, controls: Mapping[str, str]) -> None:
    """Fill the temporary table `known_controls`.

    Args:
        connection: of a PlanDB.
        controls: digests of ControlNets by their names in the spec.
    """
    known = pa.table(
        {"name": list(controls), "control_digest": list(controls.values())},
        pa.schema([("name", pa.string()), ("control_digest", pa.string())]),
    )
    connection.register("given_controls", known)
    connection.execute("CREATE OR REPLACE TEMP TABLE known_controls AS SELECT * FROM given_controls")
    connection.unregister("given_controls")
