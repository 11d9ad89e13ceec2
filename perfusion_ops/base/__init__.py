"""A base model: its diffusers folder, text encoder, tokenizer, noise schedule and captions."""
