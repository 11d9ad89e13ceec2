"""How good the embedded models are: `python -m perfusion_ops.mini.quality`, measured, with bars.

Scorers are judged on renders of products that nothing was trained on; the base model is judged by the scorers, beside
the same scorers' judgement of real renders of the very same prompts, which is the most that it can reach.
"""
