"""The families that this version knows, by the values of `_class_name` in model_index.json."""

from perfusion_ops.families.pixart_sigma import PIXART_SIGMA
from perfusion_ops.families.stable_diffusion import STABLE_DIFFUSION
from perfusion_ops.families.stable_diffusion_xl import STABLE_DIFFUSION_XL

FAMILIES = {
    name: family
    for family in (STABLE_DIFFUSION, STABLE_DIFFUSION_XL, PIXART_SIGMA)
    for name in (family.kind, *family.also)
}
PARTS = tuple(sorted({part for family in FAMILIES.values() for part in family.parts}))  # of any family
