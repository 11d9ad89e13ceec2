"""The scorers of a scoring run, each with its purpose, and their common name and digest in the tables."""

import hashlib
from dataclasses import dataclass

from perfusion_ops.scoring.folder import Kind, ScorerError, ScorerFolder, describe_scorer

# Changes when the same folders would give other scores: another meaning, or another preparation of pictures.
_VERSION = "perfusion scores 1"

_FIT: dict[str, tuple[Kind, ...]] = {"text": ("dual",), "image": ("dual", "image"), "reader": ("reader",)}
_ABILITY: dict[str, str] = {
    "text": "compares pictures with texts (a CLIP or SigLIP model)",
    "image": "embeds pictures (a DINO, ViT, ResNet, ConvNeXt, CLIP or SigLIP model)",
    "reader": "labels pictures (a classifier with labels such as 'context:beach')",
}


@dataclass(frozen=True)
class ScorerChoice:
    """Described scorers, each for its purpose; None for a score that is not wanted."""

    name: str
    text: ScorerFolder | None
    image: ScorerFolder | None
    reader: ScorerFolder | None

    @property
    def digest(self) -> str:
        """Hex sha256 over what all scores depend on: the folders' contents and purposes, not their paths."""
        parts = (("text", self.text), ("image", self.image), ("reader", self.reader))
        lines = [_VERSION, *(f"{purpose} {folder.digest}" for purpose, folder in parts if folder)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def choose_scorers(
    scorer: str | None = None, *, text: str | None = None, image: str | None = None, reader: str | None = None
) -> ScorerChoice:
    """Scorers from the user's folders.

    Args:
        scorer: one folder for every purpose that it supports.
        text: folder that compares pictures with prompts.
        image: folder that compares pictures with training pictures.
        reader: folder that recognises the context of a picture.

    Raises:
        ScorerError: no folder is given, one is not a scorer or cannot do its purpose, or `scorer` is combined with
            another argument.
    """
    given = {"text": text, "image": image, "reader": reader}
    if scorer and any(given.values()):
        raise ScorerError(f"the scorer {scorer!r} is for all purposes: give it alone, or one folder for each purpose")
    if not scorer and not any(given.values()):
        raise ScorerError("no scorer is given: name one folder, or one for each purpose")
    described = {folder: describe_scorer(folder) for folder in {scorer, *given.values()} if folder}
    found = {purpose: described[folder] if folder else None for purpose, folder in given.items()}
    if scorer:
        found = {
            purpose: described[scorer] if described[scorer].kind in kinds else None for purpose, kinds in _FIT.items()
        }
    for purpose, folder in found.items():
        if folder and folder.kind not in _FIT[purpose]:
            raise ScorerError(
                f"{folder.path} ({folder.model_type}) cannot be the {purpose} scorer: "
                f"give a folder that {_ABILITY[purpose]}"
            )
    name = " ".join(f"{purpose}={folder.name}" for purpose, folder in found.items() if folder)
    return ScorerChoice(name, **found)
