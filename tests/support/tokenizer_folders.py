"""A CLIP tokenizer with a whole byte alphabet and a few hundred merges, made on the spot."""

import functools

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

_TEXTS = ["a photo of a mug on the beach", "wide brimmed hat", "teddy bear in the snow", "submarine", "0123456789"]
_SPECIAL = ["<|startoftext|>", "<|endoftext|>"]


@functools.cache
def small_clip(limit=77):
    """A byte-level BPE of CLIP's kind: every character has tokens, however rare it is."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained.train_from_iterator(
        _TEXTS, trainers.BpeTrainer(vocab_size=600, end_of_word_suffix="</w>", initial_alphabet=alphabet)
    )
    learned = trained.get_vocab(with_added_tokens=False)
    words = sorted(learned, key=learned.get)
    words += [f"{byte}</w>" for byte in alphabet if f"{byte}</w>" not in learned]
    vocab = {word: number for number, word in enumerate([*words, *_SPECIAL])}
    merges = [tuple(pair) for pair in _merges(trained)]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=limit)


def _merges(tokenizer):
    import json

    return json.loads(tokenizer.to_str())["model"]["merges"]
