"""The tokenizer: CLIP's byte-pair scheme, in which every word that captions use is one token.

Any other word is spelled in letters and pieces, so a placeholder or a misspelling never fails.
"""

import json
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

from transformers import CLIPTokenizer

from perfusion_ops.mini.world.grammar import MAX_TOKENS, captions
from perfusion_ops.mini.world.vocabulary import BACKGROUNDS, phrases

CONTEXT = MAX_TOKENS + 2  # the start and the end
_CAPTIONS = 40_000  # in which every word of the grammar has turned up
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.'!?-*<>_()"
_END = "</w>"
_MORE = "two three large red style under front background by is"


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """Make the tokenizer in `folder`, with CLIP's classic two files beside the new one, and load it from there."""
    places = (line for name in BACKGROUNDS for line in phrases(name))
    sources = [*islice(captions(_CAPTIONS), _CAPTIONS), _MORE, *places]
    merges = byte_pairs({word for line in sources for word in line.replace(",", " ,").split()})
    letters = [letter + end for end in ("", _END) for letter in _LETTERS]
    tokens = dict.fromkeys([*letters, *(first + second for first, second in merges)])
    vocabulary = {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return load_tokenizer(folder)


def byte_pairs(words: set[str]) -> list[tuple[str, str]]:
    """The merges that make every one of `words` a token, the most frequent pair first, of equals the last in order.

    The usual trainer breaks ties at random, and another tokenizer is another model.
    """
    spelled = [[*word[:-1], word[-1] + _END] for word in sorted(words)]
    merges = []
    while pairs := Counter(pair for word in spelled for pair in pairwise(word)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        spelled = [_merged(word, best) for word in spelled]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer that `write_tokenizer` left in `folder`."""
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
