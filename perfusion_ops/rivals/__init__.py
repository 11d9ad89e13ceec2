"""The methods that ours is compared with, each as the field writes it, on an unmodified diffusers denoiser.

All take the same `Example` (latents and masks of one product's photos), draw the same kinds of rows, minimise the same
masked loss and get the same number of denoiser evaluations. `personalised.py` says what each returns; `ours.py` gives
our own method the same form.
"""
