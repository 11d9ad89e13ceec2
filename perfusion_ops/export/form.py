"""What concepts are exported to; apart from the code that does it, so that help answers at once."""

from enum import StrEnum


class Form(StrEnum):
    """The program that reads the files, or the kind of files."""

    LORA = "lora"
    DIFFUSERS = "diffusers"
    COMFYUI = "comfyui"
    ONNX = "onnx"
