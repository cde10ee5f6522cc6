"""Prepare training sets: shards of (content, style, target) triplets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from data import demo_build, demo_sheet
from data.shards import expand_shards
from launch.cli import exit_code


@dataclass
class Demo:
    """Make the embedded demo set again: photographs x pretrained style networks."""

    out: Path = Path("data/demo")
    """Folder that the shards go to."""
    photos: Path = Path("data/demo/photos")
    """Folder of photographs (JPEG) with their ATTRIBUTION.json."""
    size: int = 80
    """Side of the images in pixels, 32 to 256."""
    seed: int = 0
    """Decides crops, pairings and style references."""
    sheet: Path = Path("runs/demo_contact_sheet.png")
    """Where a contact sheet of all sets is written, to look at."""

    def run(self) -> None:
        photos = demo_build.load_photos(self.photos)
        demo_build.build(photos, self.out, self.size, self.seed, demo_build.load_styliser())
        demo_sheet.write_attribution(self.photos, self.out / "ATTRIBUTION.md")
        demo_sheet.write_sheet({name: expand_shards([self.out / f"{name}-*.tar"]) for name in demo_build.COUNTS}, self.sheet)
        print(f"shards are in {self.out}, a contact sheet is {self.sheet}")


def main() -> None:
    # A table of subcommands: other sources of triplets join it.
    command = tyro.extras.subcommand_cli_from_dict({"demo": Demo}, description=__doc__)
    exit_code(command.run)


if __name__ == "__main__":
    main()
