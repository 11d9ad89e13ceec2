"""The names of cross-attention layers in files of other programs.

Ours are those of diffusers, such as `down_blocks.0.attentions.1.transformer_blocks.0.attn2`. kohya's tools, A1111,
Forge, ComfyUI and InvokeAI join them with underscores behind `lora_unet_`. For SDXL they use the names of the original
implementation, whose block numbers do not start again at each level: with n layers in a block, layer l of down block b
is input block 1 + (n + 1) b + l, and layer l of up block b is output block (n + 1) b + l.
"""

from collections.abc import Sequence

from perfusion_ops.attention.maps import cross_attentions
from perfusion_ops.base_model import Base

PREFIX = "lora_unet_"


def layer_names(base: Base) -> list[str]:
    """Names of the L layers, in the order of the stack."""
    return [name for name, _ in cross_attentions(base.denoiser)]


def levels(base: Base) -> tuple[int, ...]:
    """The layers in a block at each level of the denoiser, the finest level first."""
    config = base.denoiser.config
    found = config.layers_per_block
    return tuple(found) if isinstance(found, list | tuple) else (int(found),) * len(config.block_out_channels)


def original_block(name: str, layers: Sequence[int]) -> tuple[str, int, int]:
    """Where a layer is in the original implementation: `input`, `middle` or `output`, the block, and the transformer.

    >>> original_block("up_blocks.1.attentions.2.transformer_blocks.0.attn2", (2, 2, 2, 2))
    ('output', 5, 0)
    """
    parts = name.split(".")
    transformer = int(parts[parts.index("transformer_blocks") + 1])
    if parts[0] == "mid_block":
        return "middle", 0, transformer
    block, layer = int(parts[1]), int(parts[3])
    down = parts[0] == "down_blocks"
    number = layer + sum(each + 1 for each in (layers if down else tuple(reversed(layers)))[:block])
    return ("input", 1 + number, transformer) if down else ("output", number, transformer)


def lora_name(name: str, projection: str, *, original: bool, layers: Sequence[int]) -> str:
    """The name of one projection (`to_k` or `to_v`) of a layer, without the tensor's own suffix.

    Args:
        name: of the layer.
        projection: see above.
        original: name blocks as the original implementation does.
        layers: see `levels`.

    >>> lora_name("mid_block.attentions.0.transformer_blocks.3.attn2", "to_v", original=True, layers=(2, 2, 2))
    'lora_unet_middle_block_1_transformer_blocks_3_attn2_to_v'
    """
    if original:
        where, number, transformer = original_block(name, layers)
        block = "middle_block.1" if where == "middle" else f"{where}_blocks.{number}.1"
        name = f"{block}.transformer_blocks.{transformer}.attn2"
    return f"{PREFIX}{name.replace('.', '_')}_{projection}"
