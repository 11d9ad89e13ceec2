"""The embedded scorers, each with the purpose that it was trained for."""

from perfusion_ops.mini import scorers_folder
from perfusion_ops.scoring.choice import ScorerChoice
from perfusion_ops.scoring.folder import ScorerError, describe_scorer


def embedded_scorers() -> ScorerChoice:
    """The three scorers of the synthetic world, under the name `mini`.

    Raises:
        ScorerError: this installation lacks them.
    """
    home = scorers_folder()
    if not home.is_dir():
        raise ScorerError("this installation has no embedded scorers: reinstall it, or give folders of your own")
    return ScorerChoice("mini", *(describe_scorer(home / part) for part in ("dual", "identity", "reader")))
