"""A custom pipeline of diffusers."""
