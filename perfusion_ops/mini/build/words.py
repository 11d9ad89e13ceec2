"""The tokenizer: CLIP's byte-pair scheme, in which every word that captions use is one token.

Any other word is spelled in letters and pieces, so a placeholder or a misspelling never fails.
"""

import json
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from perfusion_ops.mini.grammar import MAX_TOKENS, captions
from perfusion_ops.mini.vocabulary import BACKGROUNDS, phrases

CONTEXT = MAX_TOKENS + 2  # the start and the end
_CAPTIONS = 40_000  # in which every word of the grammar has turned up
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.'!?-*<>_()"
_MORE = "two three large red style under front background by is"
_MOST = 4000


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """Make the tokenizer in `folder`, with CLIP's classic two files beside the new one, and load it from there."""
    sources = [*islice(captions(_CAPTIONS), _CAPTIONS), _MORE, *(line for name in BACKGROUNDS for line in phrases(name))]
    words = sorted({word for line in sources for word in line.replace(",", " ,").split()})
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=_MOST, min_frequency=1, initial_alphabet=list(_LETTERS), end_of_word_suffix="</w>",
        show_progress=False,
    )  # fmt: skip
    trained.train_from_iterator([" ".join(words)], trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = dict.fromkeys([*model["vocab"], *(letter + end for letter in _LETTERS for end in ("", "</w>"))])
    vocabulary = {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return load_tokenizer(folder)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer that `write_tokenizer` left in `folder`."""
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
