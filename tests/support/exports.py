"""Concepts to export: random ones, and untrained ones that lie where a trained one would."""

import torch

from perfusion_ops.base_model import Base
from perfusion_ops.concept import GatedConcept
from perfusion_ops.export.lora import Origin
from perfusion_ops.metric import Metric

ORIGIN = Origin(("mug-0042",), ("c" * 64,), "2026-11-28")
PAIR = Origin(("mug-0042", "bag-7"), ("c" * 64, "d" * 64), "2026-11-28")
PROMPTS = ("a photo of a {0} on the beach", "a photo of a {0}", "a painting of the {0} in the snow")


def word_concept(base: Base, metric: Metric, word: str, seed: int) -> GatedConcept:
    """A concept whose token lies near a word: i* is its encoding, and its outputs are those of another word, moved."""
    generator = torch.Generator().manual_seed(seed)
    ids = base.tokenizer(word, add_special_tokens=False)["input_ids"]
    embedding = base.texts.embeddings(ids)
    embedding = embedding + 0.1 * embedding.std() * torch.randn(len(embedding), generator=generator)
    tokens = [base.texts.tokenize(template.replace("{}", "{0}")) for template in base.folder.settings.templates]
    with torch.no_grad():
        found = base.texts.encode(tokens, embedding.expand(len(tokens), 1, -1)).encodings
    inputs = torch.stack([found[row, tokens[row].slots.index(0)] for row in range(len(tokens))]).mean(0)
    superclass = inputs + 0.1 * inputs.std() * torch.randn(len(inputs), generator=generator)
    values = base.stack.values.float() @ superclass
    values = values + values.std() * torch.randn(len(values), generator=generator)
    return GatedConcept(word, embedding, inputs, superclass, values, None, "local", base.folder.digest, metric.digest)
