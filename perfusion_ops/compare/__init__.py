"""Our method and its rivals on any base model and any photos: `python -m perfusion_ops.compare`.

Every method learns the same products from the same photos with the same number of denoiser evaluations. Settings and
guidance are chosen on some of the products, and reported on the others.
"""
