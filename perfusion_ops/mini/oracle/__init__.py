"""A judge that knows the true product: it finds the product in a picture, and measures colours, pattern and edges.

Learned scorers rate a smeared check as highly as a crisp one. The world can draw the product, so the judge compares
pixels with pixels: `search.py` finds how the product is seen, `score.py` compares, `judge.py` puts both together.
"""
