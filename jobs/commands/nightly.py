"""`perfusion nightly`: `perfusion rerender` for a schedule, with exactly one JSON line on stdout."""

from typing import Any

import typer
from typer.core import TyperCommand

from jobs.options import Address, Set, Spec
from jobs.output import say_json


class OneLine(TyperCommand):
    """A command that tells wrong usage in its JSON line too."""

    def make_context(self, *arguments: Any, **named: Any) -> Any:
        """Parse the words of the command."""
        try:
            return super().make_context(*arguments, **named)
        except typer.Exit:  # --help
            raise
        except Exception as error:
            from jobs.results.nightly import line_of_error

            say_json(line_of_error(error, 0.0))
            raise


def command(spec: Spec, set_: Set = None, address: Address = None) -> None:
    """Do what `rerender` does and print one JSON line, for alerts.

    The line says what changed, what was done, what it cost, and which failures are new since the run before, or which
    error ended the command. Exit codes are those of `run`.
    """
    from jobs.placement.address import placed
    from jobs.results.nightly import nightly
    from jobs.spec import load_spec

    raise typer.Exit(nightly(lambda: placed(load_spec(spec, set_ or ()), address)))
