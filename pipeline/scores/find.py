"""Which scorers a user asked for: the embedded ones by name, or folders."""

from perfusion_ops.mini.embedded import embedded_scorers
from perfusion_ops.scoring.choice import ScorerChoice, choose_scorers


def find_scorers(
    scorer: str | None = None, *, text: str | None = None, image: str | None = None, reader: str | None = None
) -> ScorerChoice:
    """Resolve `mini` or folders to described scorers; `mini` when nothing is given.

    Args:
        scorer: `mini`, or one folder for everything that it can do.
        text: folder that compares renders with prompts.
        image: folder that compares renders with photos.
        reader: folder that says where products are.

    Raises:
        ScorerError: a folder is not a scorer or cannot do its purpose, or `scorer` is combined with another argument.
    """
    if (scorer or "mini") == "mini" and not (text or image or reader):
        return embedded_scorers()
    return choose_scorers(scorer, text=text, image=image, reader=reader)
