"""The synthetic product world: products, scenes, captions, and how they are drawn."""
