"""Draw a picture of a product from ONNX graphs and a concept file.

    python draw.py "a photo of a {} on the beach" mug.safetensors

It needs numpy, onnxruntime, safetensors, tokenizers and Pillow, and the files beside it. {} is the product.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from safetensors import safe_open
from tokenizers import Tokenizer

FOLDER = Path(__file__).parent
BLOCK = 128  # numbers of a packed tensor that share a scale


def read_concept(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The vectors of a concept file by name, and its metadata."""
    with safe_open(path, "numpy") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
        metadata = file.metadata()
    packed, scales = found.pop("difference"), found.pop("difference_scale").astype(np.float32)
    found["difference"] = packed.astype(np.float32) * np.repeat(scales, BLOCK)[: len(packed)]
    return {name: each.astype(np.float32) for name, each in found.items()}, metadata


def tokenize(tokenizer: Tokenizer, model: dict[str, Any], prompt: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids (1, N), and ones where the product is."""
    ids, place = [model["start"]], [0.0]
    for number, text in enumerate(prompt.split("{}")):
        if number:
            ids.append(model["start"])
            place.append(1.0)
        words = tokenizer.encode(text, add_special_tokens=False).ids if text.strip() else []
        ids += words
        place += [0.0] * len(words)
    ids.append(model["end"])
    left = model["tokens"] - len(ids)
    if left < 0:
        raise SystemExit(f"the prompt has {len(ids)} tokens, the model reads {model['tokens']}: shorten it")
    ids += [model["padding"]] * left
    place += [0.0] * (model["tokens"] - len(place))
    return np.array([ids], np.int64), np.array([place], np.float32)


def timesteps(model: dict[str, Any], steps: int) -> np.ndarray:
    """The steps of DDIM, as diffusers spaces them."""
    whole = len(model["alphas"])
    if model["spacing"] == "leading":
        return (np.arange(steps) * (whole // steps)).round()[::-1].astype(int) + model["offset"]
    if model["spacing"] == "linspace":
        return np.linspace(0, whole - 1, steps).round()[::-1].astype(int)
    return np.round(np.arange(whole, 0, -whole / steps)).astype(int) - 1


def denoise(
    model: dict[str, Any],
    run: Callable[..., np.ndarray],
    latents: np.ndarray,
    conditioning: np.ndarray,
    *,
    steps: int,
    guidance: float,
) -> np.ndarray:
    """DDIM (arXiv 2010.02502, eta = 0) with classifier-free guidance; `conditioning` has the negative prompt first."""
    alphas, whole = np.array(model["alphas"]), len(model["alphas"])
    for step in timesteps(model, steps):
        both = run(
            "denoiser",
            sample=np.repeat(latents, 2, 0),
            timestep=np.full(2, step, np.float32),
            conditioning=conditioning,
        )
        predicted = both[:1] + guidance * (both[1:] - both[:1])
        before = step - whole // steps
        here, there = alphas[step], alphas[before] if before >= 0 else model["final"]
        if model["prediction"] == "epsilon":
            start, noise = (latents - np.sqrt(1 - here) * predicted) / np.sqrt(here), predicted
        elif model["prediction"] == "v_prediction":
            start = np.sqrt(here) * latents - np.sqrt(1 - here) * predicted
            noise = np.sqrt(here) * predicted + np.sqrt(1 - here) * latents
        else:
            start, noise = predicted, (latents - np.sqrt(here) * predicted) / np.sqrt(1 - here)
        if model["clip_range"] is not None:
            start = start.clip(-model["clip_range"], model["clip_range"])
        latents = (np.sqrt(there) * start + np.sqrt(1 - there) * noise).astype(np.float32)
    return latents


def main() -> None:
    """Draw one picture and save it."""
    model = json.loads((FOLDER / "model.json").read_text())
    parser = argparse.ArgumentParser(description="Draw a picture of a product from ONNX graphs and a concept file.")
    parser.add_argument("prompt", help='such as "a photo of a {} on the beach"')
    parser.add_argument("concept", type=Path, help="a file of this folder's concepts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=Path, help="a .npy file of noise (C, h, w), in the place of a seed")
    parser.add_argument("--steps", type=int, default=model["steps"])
    parser.add_argument("--guidance", type=float, default=model["guidance"])
    parser.add_argument("--bias", type=float)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--out", type=Path, default=Path("picture.png"))
    words = parser.parse_args()
    concept, metadata = read_concept(words.concept)
    if metadata["base_digest"] != model["base_digest"]:
        raise SystemExit(f"{words.concept} belongs to another base model")
    sessions = {}

    def run(name: str, **inputs: np.ndarray) -> np.ndarray:
        if name not in sessions:
            sessions[name] = onnxruntime.InferenceSession(FOLDER / f"{name}.onnx", providers=["CPUExecutionProvider"])
        return sessions[name].run(None, inputs)[0]

    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    nothing = {name: np.zeros_like(each) for name, each in concept.items()}
    gate = {
        "bias": words.bias if words.bias is not None else float(metadata["bias"]),
        "temperature": words.temperature or float(metadata["temperature"]),
        "linear": float(metadata["gate"] == "linear"),
    }
    gate = {name: np.array(value, np.float32) for name, value in gate.items()}
    told = []
    for prompt, what in (("", nothing), (words.prompt, concept)):
        ids, place = tokenize(tokenizer, model, prompt)
        encodings = run("text_encoder", ids=ids, place=place, embedding=what["embedding"])
        vectors = {name: what[name] for name in ("dual", "input", "superclass", "difference")}
        told.append(run("edit", encodings=encodings, **vectors, **gate))
    side = model["latent_side"]
    if words.noise is None:
        noise = np.random.default_rng(words.seed).standard_normal((model["channels"], side, side), np.float32)
    else:
        noise = np.load(words.noise).astype(np.float32)
    latents = denoise(model, run, noise[None], np.concatenate(told), steps=words.steps, guidance=words.guidance)
    picture = run("decoder", latents=latents)[0].transpose(1, 2, 0)
    Image.fromarray(((picture / 2 + 0.5).clip(0, 1) * 255).round().astype(np.uint8)).save(words.out)


if __name__ == "__main__":
    main()
