"""`perfusion schema`: the JSON schema of spec files."""

import json

from jobs.output import say


def command() -> None:
    """Print the JSON schema of spec files, for editors."""
    from jobs.spec import spec_schema

    say(json.dumps(spec_schema(), indent=2, ensure_ascii=False))
