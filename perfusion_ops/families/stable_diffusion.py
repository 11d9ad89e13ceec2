"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, whose last hidden state the denoiser is given."""

from perfusion_ops.families.family import INPAINT, TEXT, Family, Foreign, Text

STABLE_DIFFUSION = Family(
    kind="StableDiffusionPipeline",
    title="SD 1.x and 2.x",
    texts=(Text("tokenizer", "text_encoder"),),
    pipelines={
        "text": "StableDiffusionPipeline",
        "image": "StableDiffusionImg2ImgPipeline",
        "inpaint": "StableDiffusionInpaintPipeline",
        "control": "StableDiffusionControlNetPipeline",
        "video": "AnimateDiffPipeline",
    },
    also=("StableDiffusionInpaintPipeline",),
    further={(9, 4): INPAINT},
    options={"safety_checker": None},
    rescales=(TEXT,),
    # Metrics of this family are bound to the whole folder: the keys of existing concepts contain that digest.
    shares_metric=False,
    foreign=Foreign(
        architecture={0: "stable-diffusion-v1", 1024: "stable-diffusion-v2-512"},
        version={0: "sd_v1", 1024: "sd_v2"},
        embeddings=("emb_params",),
    ),
)
