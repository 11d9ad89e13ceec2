"""How the embedded models are made, from nothing: `python -m perfusion_ops.mini.build`.

Pictures are rendered, then a text encoder, an autoencoder, a denoiser and the scorers are trained and exported. Every
stage is resumable: stopped at any moment, the same command goes on from the last checkpoint. All that is written lies
in one folder, which is not part of the package; only the exported folders are.
"""
