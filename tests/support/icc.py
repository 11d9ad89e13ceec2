"""Small colour profiles made to order, and what they say a colour is in sRGB, by arithmetic of its own."""

import struct

import numpy as np
from PIL import ImageCms

# Columns: XYZ (D50) of red, green and blue at full strength.
ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
P3 = np.array([[0.51512, 0.29198, 0.1571], [0.2412, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
PROPHOTO = np.array([[0.79767, 0.13519, 0.03134], [0.28804, 0.71188, 0.00009], [0.0, 0.0, 0.82491]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.7141]])
INKS = {"paper": (100, 0, 0), "c": (55, -37, -50), "m": (48, 74, -3), "y": (89, -5, 93), "k": (0, 0, 0)}


def linear(share):
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def encoded(light):
    light = np.clip(light, 0, 1)
    return (np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055) * 255).round().astype(int)


def fixed(*numbers):
    return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


def gamma(value):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


def parametric():
    """The curve of sRGB, as version 4 writes it."""
    return b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def table():
    """The same as 1,024 numbers, as version 2 writes it."""
    steps = np.linspace(0, 1, 1024)
    return b"curv\0\0\0\0" + struct.pack(">I1024H", 1024, *(linear(steps) * 65535).round().astype(int))


def profile(space, tags, *, kind=b"mntr", pcs=b"XYZ ", version=2):
    """A profile of a colour space with given tags; description and white point are added."""
    name = b"a test\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78),
        b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249),
        b"cprt": b"text\0\0\0\0none\0",
        **tags,
    }
    start = 128 + 4 + 12 * len(tags)
    directory, body = struct.pack(">I", len(tags)), b""
    for tag, data in tags.items():
        directory += tag + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = (
        struct.pack(">I4sI", start + len(body), b"none", version << 24 | 0x400000) + kind + space + pcs
        + struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(0.9642, 1, 0.8249)
    )  # fmt: skip
    return header.ljust(128, b"\0") + directory + body


def rgb(matrix, curve, version=2):
    columns = {
        bytes(name): b"XYZ \0\0\0\0" + fixed(*matrix[:, n]) for n, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))
    }
    return profile(b"RGB ", {**columns, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)}, version=version)


def grey(curve):
    return profile(b"GRAY", {b"kTRC": curve})


def cmyk():
    """Each ink takes from the paper what it takes alone."""
    ramps = np.tile(np.arange(256, dtype=np.uint8), 4).tobytes()
    nodes = bytearray()
    for number in range(16):
        amounts = [bool(number & bit) for bit in (8, 4, 2, 1)]
        ink = [INKS[name] for name, there in zip("cmyk", amounts, strict=True) if there]
        lab = min(ink, key=lambda each: each[0]) if ink else INKS["paper"]
        nodes += bytes((round(lab[0] * 2.55), lab[1] + 128, lab[2] + 128))
    lut = b"mft1\0\0\0\0\4\3\2\0" + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + ramps + bytes(nodes) + ramps[:768]
    return profile(b"CMYK", {b"A2B0": lut}, kind=b"prtr", pcs=b"Lab ")


def builtin():
    """The sRGB that lcms makes, of version 4."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


PROFILES = {
    "adobe": (rgb(ADOBE, gamma(563 / 256)), ADOBE, lambda share: share ** (563 / 256)),
    "display-p3": (rgb(P3, parametric(), version=4), P3, linear),
    "prophoto": (rgb(PROPHOTO, gamma(1.8)), PROPHOTO, lambda share: share**1.8),
}
SAME = {"srgb v2": rgb(SRGB, table()), "srgb v4": rgb(SRGB, parametric(), version=4), "lcms": builtin()}


def expected(pixels, matrix, curve):
    """RGB values under a matrix profile as sRGB."""
    return encoded(curve(np.asarray(pixels) / 255) @ matrix.T @ np.linalg.inv(SRGB).T)


def of_lab(lightness, a, b):
    """A CIE Lab colour (D50) as sRGB."""
    y = (lightness + 16) / 116
    ratios = np.array([y + a / 500, y, y - b / 200])
    xyz = np.where(ratios > 6 / 29, ratios**3, 3 * (6 / 29) ** 2 * (ratios - 4 / 29)) * (0.9642, 1, 0.8249)
    return encoded(np.linalg.inv(SRGB) @ xyz)
