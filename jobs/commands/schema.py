"""`perfusion schema`: what a spec file may say, as JSON schema."""

import json

from jobs.output import say
from jobs.spec import spec_schema


def command() -> None:
    """Print the JSON schema of spec files, for editors."""
    say(json.dumps(spec_schema(), indent=2, ensure_ascii=False))
