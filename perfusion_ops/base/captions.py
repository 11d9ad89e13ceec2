"""Built-in captions to estimate the metric from: distinct, seeded, some 10^9 possible.

They replace the 100,000 LAION captions of the paper (arXiv 2305.01644, supplement C). Half of them have random words
of the tokenizer's own vocabulary as nouns, so that the captions cover every direction of the encoder.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

HELD_OUT = 1000  # captions that only test the metric
SEED = 0  # of the built-in captions

NOUNS = tuple(
    """
mug cup bowl plate teapot kettle bottle can jar vase candle lamp clock watch chair sofa table desk shelf mirror
pillow blanket rug basket box bag backpack suitcase wallet purse belt hat cap scarf glove shoe boot sandal
sneaker sock shirt jacket coat dress skirt sweater hoodie ring necklace bracelet earring sunglasses perfume
lipstick soap brush towel guitar piano violin drum camera phone laptop keyboard headphones speaker television
radio robot toy doll puzzle ball bicycle motorcycle car truck bus train boat plane skateboard scooter tent
umbrella book notebook pen pencil painting poster statue sculpture flower rose tree plant cactus fruit apple
lemon berry cake cookie bread pizza burger coffee tea cat dog bird horse bear rabbit fish turtle elephant lion
fox owl man woman girl boy child family chef dancer house castle bridge tower church street garden kitchen
bedroom office shop window door stairs fountain
""".split()  # noqa: SIM905
)

_ADJECTIVES = tuple(
    """
red orange yellow green blue purple pink brown black white gray golden silver striped dotted checked floral
plain shiny matte wooden metal glass ceramic leather plastic knitted paper stone marble tiny small large giant
tall round square old new vintage modern antique rustic elegant cheap luxury broken clean dirty empty full soft
hard bright dark colorful pale warm cold fresh handmade cute funny beautiful ugly strange famous simple detailed
""".split()  # noqa: SIM905
)

_PLACES = tuple(
    """
on the beach|in the snow|in the forest|in the desert|in the city at night|on a wooden table|on a marble counter
in front of a brick wall|on the grass|in a garden|by the sea|on a mountain|in the rain|at sunset|at sunrise
under water|in outer space|in the kitchen|in the bedroom|in a cozy living room|in the office|in a shop window
in a museum|on a shelf|on a white background|on a black background|on a blue background|in a studio
on the street|in a cafe|in a park|at a market|on a boat|in a field of flowers|on a rooftop|in a cave|on the moon
in Paris|in Tokyo|in New York|in the jungle|near a waterfall|by a campfire|under a tree|at a wedding
at a birthday party|in a library|in a castle|on a stage
""".strip()
    .replace("\n", "|")
    .split("|")
)

_FRAMES = tuple(
    """
a photo of {}|a good photo of {}|a photograph of {}|a picture of {}|an image of {}|a close-up of {}
a cropped photo of {}|a bright photo of {}|a dark photo of {}|a blurry photo of {}|a studio shot of {}
a product photo of {}|an advertisement for {}|a rendering of {}|a painting of {}|an oil painting of {}
a watercolor of {}|a drawing of {}|a sketch of {}|a cartoon of {}|a pixel art of {}|a poster of {}|{}
a view of {}|a black and white photo of {}|my {}|{} for sale|best {} of the year|how to make {}
{}, high quality, detailed|{} wallpaper
""".strip()
    .replace("\n", "|")
    .split("|")
)

_LINKS = ("next to", "and", "with", "on top of", "in front of", "behind", "inside", "beside", "wearing", "holding")


def held_out_first(captions: Iterable[str]) -> tuple[list[str], Iterator[str]]:
    """The first HELD_OUT captions of a stream, and the rest, which is read only when it is iterated."""
    source = iter(captions)
    return list(islice(source, HELD_OUT)), source


def vocabulary_words(tokenizer: Any) -> tuple[str, ...]:
    """Whole words of at least three letters that are one token of a CLIP or T5 tokenizer, sorted."""
    # CLIP marks the end of a word, T5 its start.
    marked = (token for token in tokenizer.get_vocab() if token.endswith("</w>") or token.startswith("▁"))
    found = {token.removesuffix("</w>").removeprefix("▁") for token in marked}
    return tuple(sorted(word for word in found if len(word) >= 3 and word.isascii() and word.isalpha()))


def general_captions(count: int, *, seed: int, vocabulary: Sequence[str] = ()) -> Iterator[str]:
    """Yield `count` distinct captions; the first n of a longer stream are the stream of length n."""
    generator = random.Random(seed)  # noqa: S311
    seen: set[str] = set()
    while len(seen) < count:
        caption = _caption(generator, vocabulary)
        if caption not in seen:
            seen.add(caption)
            yield caption


def _caption(generator: random.Random, vocabulary: Sequence[str]) -> str:
    thing = _thing(generator, vocabulary)
    if generator.random() < 0.25:
        thing = f"{thing} {generator.choice(_LINKS)} {_thing(generator, vocabulary)}"
    caption = generator.choice(_FRAMES).format(thing)
    return f"{caption} {generator.choice(_PLACES)}" if generator.random() < 0.6 else caption


def _thing(generator: random.Random, vocabulary: Sequence[str]) -> str:
    nouns = vocabulary if vocabulary and generator.random() < 0.5 else NOUNS
    adjectives = [generator.choice(_ADJECTIVES) for _ in range(generator.choice((0, 0, 1, 1, 2)))]
    phrase = " ".join([*dict.fromkeys(adjectives), generator.choice(nouns)])
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
