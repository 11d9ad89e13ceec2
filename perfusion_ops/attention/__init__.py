"""Where the pixels of a denoiser look: maps of its cross-attention, and masks made of them."""
