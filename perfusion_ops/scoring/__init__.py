"""Scores of pictures by ordinary transformers folders: which they are, how they load, what they say of a picture.

`folder` tells from files alone what a scorer is, `models` loads it, `protocols` is what the rest of the program sees of
it. Nothing heavy loads here.
"""
