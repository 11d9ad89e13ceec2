"""Cells that list pictures as text: taken apart where that is unambiguous, and never against a file that exists."""

import pytest

from pipeline.manifest.list_cells import split_list

NONE = frozenset()


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a.png", ["a.png"]),
        (" a.png ; b.JPG;", ["a.png", "b.JPG"]),
        ("a;b", ["a", "b"]),
        ("a.png|b.png", ["a.png", "b.png"]),
        ("a.png, b.png, c.webp", ["a.png", "b.png", "c.webp"]),
        ("a.png\nb.png", ["a.png", "b.png"]),
        ('["a.png", "b, c.png"]', ["a.png", "b, c.png"]),
        ("['a.png', 'b.png']", ["a.png", "b.png"]),
        ("['a.png' 'b.png']", ["a.png", "b.png"]),
        ("[]", []),
        ("[7]", [7]),
        ("mug, red.png", ["mug, red.png"]),
        ("photos/mug,red/1.png", ["photos/mug,red/1.png"]),
        ("https://x.io/a.jpg, https://x.io/b?id=2", ["https://x.io/a.jpg", "https://x.io/b?id=2"]),
        ("https://x.io/w_100,h_200/a.jpg", ["https://x.io/w_100,h_200/a.jpg"]),
        ("https://x.io/a.png?size=1,2", ["https://x.io/a.png?size=1,2"]),
        ("s3://b/a.png|s3://b/b.png", ["s3://b/a.png", "s3://b/b.png"]),
        ("[a.png", ["[a.png"]),
        ("[a]", ["[a]"]),
    ],
)
def test_csv_lists(text, items):
    assert split_list(text, NONE.__contains__, csv=True) == items


@pytest.mark.parametrize("text", ["a.png,b.png", "a.png|b.png", '["a.png"]', "mug;red", "a,b.png"])
def test_a_path_that_exists_wins(text):
    assert split_list(text, {text}.__contains__, csv=True) == [text]
    assert split_list(text, {text}.__contains__, csv=False) == [text]


def test_text_of_other_formats_is_a_list_only_where_all_items_are_pictures():
    assert split_list("a.png;b.png", NONE.__contains__, csv=False) == ["a.png", "b.png"]
    assert split_list("a;b", NONE.__contains__, csv=False) == ["a;b"]
    assert split_list(" a.png", NONE.__contains__, csv=False) == [" a.png"]


def test_existence_is_asked_only_for_what_may_be_a_list():
    def asked(text):
        raise AssertionError(text)

    assert split_list("a.png", asked, csv=False) == ["a.png"]
    assert split_list("a.png;b.png", asked, csv=True) == ["a.png", "b.png"]
    assert split_list("mug, red.png", asked, csv=True) == ["mug, red.png"]
