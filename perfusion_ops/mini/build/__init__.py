"""Builds the embedded models from scratch: `python -m perfusion_ops.mini.build`.

Pictures are rendered, then a text encoder, an autoencoder, a denoiser and the scorers are trained and exported. Every
stage can be resumed: after a stop at any moment, the same command continues from the last checkpoint. All files are
written to one work folder outside the package; only the exported folders are part of the package.
"""
