"""The Perfusion method: tensors in, tensors out. No Ray, no Parquet, no network.

Perfusion (Tewel et al., "Key-Locked Rank One Editing for Text-to-Image Personalization", SIGGRAPH 2023,
arXiv 2305.01644) teaches a diffusion model one product by a gated rank-one edit of its cross-attention.
"""
