"""ICC profiles from their primaries and curves, as bytes."""

from __future__ import annotations

import struct

import numpy as np

# CIE 1931 xy of red, green, blue and white, as the standards give them.
D65, D50 = (0.3127, 0.3290), (0.3457, 0.3585)
DISPLAY_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65)
ADOBE_RGB = ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060), D65)
PROPHOTO = ((0.734699, 0.265301), (0.159597, 0.840403), (0.036598, 0.000105), D50)
SRGB = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), D65)
Primaries = tuple[tuple[float, float], ...]


def xyz(xy: tuple[float, float]) -> np.ndarray:
    return np.array([xy[0] / xy[1], 1, (1 - xy[0] - xy[1]) / xy[1]])


def to_d50(primaries: Primaries) -> np.ndarray:
    """RGB -> XYZ under D50 (Bradford), [3, 3]; its columns are what a matrix profile holds."""
    columns = np.stack([xyz(p) for p in primaries[:3]], axis=1)
    white = xyz(primaries[3])
    matrix = columns * np.linalg.solve(columns, white)
    cone = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    scale = np.diag((cone @ xyz(D50)) / (cone @ white))
    return np.linalg.inv(cone) @ scale @ cone @ matrix


def fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def icc(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A display profile of version 2 with these tags."""
    blobs, table = b"", b""
    at = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(blobs), len(data))
        blobs += data + bytes(-len(data) % 4)
    body = struct.pack(">I", len(tags)) + table + blobs
    header = struct.pack(">I4sI4s4s4s", 128 + len(body), bytes(4), 0x02100000, b"mntr", space, b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + b"".join(fixed(v) for v in (0.9642, 1, 0.8249))
    return header + bytes(128 - len(header)) + body


def point(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(fixed(v) for v in values)


def gamma_curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def table_curve(values: np.ndarray) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(f">I{len(values)}H", len(values), *(round(v * 65535) for v in values))


def described(text: bytes) -> bytes:
    return b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + bytes(1 + 8 + 3 + 67)


def matrix_profile(primaries: Primaries, curve: bytes) -> bytes:
    columns = to_d50(primaries).T
    tags = {b"desc": described(b"test"), b"cprt": b"text\0\0\0\0none\0", b"wtpt": point(xyz(D50))}
    tags |= {f"{c}XYZ".encode(): point(columns[i]) for i, c in enumerate("rgb")}
    return icc(b"RGB ", tags | {f"{c}TRC".encode(): curve for c in "rgb"})


def grey_profile(gamma: float) -> bytes:
    tags = {b"desc": described(b"grey"), b"cprt": b"text\0\0\0\0none\0", b"wtpt": point(xyz(D50))}
    return icc(b"GRAY", tags | {b"kTRC": gamma_curve(gamma)})
