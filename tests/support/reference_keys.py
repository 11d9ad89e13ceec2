"""The definition of content keys in Python: what the SQL macros of `pipeline.contract.keys` must compute."""

import hashlib

from pipeline.contract.keys import normalise_superclass, settings_json


def _text(value):
    return "-" if value is None else f"{len(value.encode())}:{value}"


def _integer(value):
    return _text(None if value is None else str(value))


def _number(value):
    return _text(repr(value + 0.0))


def _texts(values):
    return f"{len(values)}[" + "".join(map(_text, values)) + "]"


def _digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def picture_field(sha256, reading=None):
    """The field of one photo or mask in a concept's key: its digest, and how its pixels are read.

    `reading` names a rule that was added later and changed the pixels of the same bytes
    (`pipeline.inputs.headers.Reading`). A photo that no such rule applies to keeps its digest alone.
    """
    return f"{sha256}:{reading}" if reading else sha256


def concept_key(*, base_digest, metric_key, training, superclass, images, start=None):
    """Key of a trained concept.

    Args:
        base_digest: digest of the base model.
        metric_key: key of the metric C that the concept is trained under.
        training: the complete settings.
        superclass: its words; white space between them does not matter.
        images: (image, mask or None) pairs in any order, each as `picture_field` writes it.
        start: sha256 of the file that the training starts from; None if it starts at the superclass.

    Returns:
        64 hex digits.
    """
    pairs = sorted(_text(image) + _text(mask) for image, mask in images)
    return _digest(
        "perfusion concept 1 "
        + _text(base_digest)
        + _text(metric_key)
        + _text(settings_json(training))
        + _text(normalise_superclass(superclass))
        + _texts(pairs)
        + ("" if start is None else _text(f"start {start}"))
    )


def render_material(
    *, base_digest, concepts, prompt, negative_prompt, steps, guidance, scheduler, width, height,
    bias, temperature, lock, edit_unconditional, modes=()):  # fmt: skip
    """Everything that decides a picture except its seed, as canonical text.

    Args:
        base_digest: digest of the base model.
        concepts: concept keys; number n stands where the prompts hold `{n}`.
        prompt: with `{0}`, `{1}`, ... numbered in order of first appearance.
        negative_prompt: with the same numbers.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        scheduler: name of the sampler.
        width: pixels, None for the base model's own size.
        height: pixels, None for the base model's own size.
        bias: bias of the gate.
        temperature: temperature of the gate.
        lock: what fills the key columns.
        edit_unconditional: whether the unconditional rows are edited too.
        modes: `regional`, `strength S`, `rescale R`, `vae tiling`, where they matter.
    """
    return (
        _text(base_digest)
        + _texts(concepts)
        + "".join(map(_text, modes))
        + _text(prompt)
        + _text(negative_prompt)
        + _integer(steps)
        + _number(guidance)
        + _text(scheduler)
        + _integer(width)
        + _integer(height)
        + _number(bias)
        + _number(temperature)
        + _text(lock)
        + _text("true" if edit_unconditional else "false")
    )


def scene_modes(photo, *, mask=None, box=None, strength=1.0, keep=None):
    """What a scene adds to the modes of `render_material`.

    Args:
        photo: the photo as `picture_field` writes it; None without a scene.
        mask: the mask in the same way, or None.
        box: left, top, right, bottom as shares, or None.
        strength: how much noise the drawn part starts from.
        keep: `product` if the product of the photo stays.
    """
    if photo is None:
        return []
    return [
        f"keep {keep} {photo}" if keep else f"scene {photo}",
        *([f"mask {mask}"] if mask else []),
        *(["box " + " ".join(repr(share + 0.0) for share in box)] if box else []),
        *([f"scene strength {strength!r}"] if strength != 1 else []),
    ]


def control_modes(digest, picture=None, *, strength=1.0):
    """What a ControlNet adds to the modes of `render_material`: its digest, and `picture_field` of what it follows."""
    if digest is None:
        return []
    return [f"control {digest} {picture}", *([f"control strength {strength!r}"] if strength != 1 else [])]


def video_modes(motion, frames):
    """What a video adds to the modes of `render_material`: the digest of its motion adapter, and its frames."""
    return [] if frames is None else [f"video {frames} {motion}"]


def render_file(image_format, webp_quality=None, fps=None):
    """What the file adds to the material of a key, after the seed was taken from it: nothing for PNG.

    Args:
        image_format: png, webp or mp4.
        webp_quality: of lossy WebP; None if it is lossless.
        fps: of a video; None for a picture.
    """
    speed = "" if fps is None else _text(f"fps {fps}")
    if image_format == "png":
        return speed
    return _text(image_format if webp_quality is None else f"{image_format} {webp_quality}") + speed


def render_key(material, seed):
    """Key of a picture: 64 hex digits from `render_material`, followed by `render_file`, and the seed."""
    return _digest("perfusion render 1 " + material + _integer(seed))


def default_seed(material, base_seed, image_index):
    """Seed of a picture that asks for none, in [0, 2^31): the same row always gets the same picture."""
    digest = _digest("perfusion seed 1 " + material + _integer(base_seed) + _integer(image_index))
    return int(digest[:8], 16) & 0x7FFFFFFF
