"""Our method and its rivals side by side on the embedded base: `python -m perfusion_ops.mini.methods`.

Every method learns the same held-out products from the same photos with the same number of denoiser evaluations, after
the same number of tuning runs on other products, and draws the same prompts with the same seeds. What is said here
holds for this small base and for nothing else.
"""
