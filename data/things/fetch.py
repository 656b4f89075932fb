"""Make the sprite sheets again from the two npm packages that they were taken from.

    python -m data.things.fetch --packages DIR

The sheets are in the repository; this documents where they come from, and makes them for a longer catalogue.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data.pinned_file import fetch_pinned
from data.things.catalogue import STYLES, Thing, things
from data.things.sprites import COLUMNS, FOLDER, SIDE, corner, sheet_path


@dataclass(frozen=True)
class EmojiPackage:
    """An npm package, pinned by its SHA-512, and where its images are."""

    requirement: str
    archive: str
    sha512: str  # base64, as npm's lock files have it
    folder: str
    ending: str
    licence: str


PACKAGES = {
    "fluent": EmojiPackage(
        requirement="@lobehub/fluent-emoji-3d@1.1.0",
        archive="lobehub-fluent-emoji-3d-1.1.0.tgz",
        sha512="Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        folder="package/assets",
        ending="webp",
        licence="MIT",
    ),
    "noto": EmojiPackage(
        requirement="emoji-datasource-google@16.0.0",
        archive="emoji-datasource-google-16.0.0.tgz",
        sha512="ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
        folder="package/img/google/64",
        ending="png",
        licence="MIT; its images, Noto Emoji, are Apache-2.0",
    ),
}


def fetch_package(style: str, folder: Path) -> Path:
    """The package's archive, downloaded with npm into `folder` unless it is there already, and checked."""
    package = PACKAGES[style]
    download = ["npm", "pack", "--silent", package.requirement]
    return fetch_pinned(folder / package.archive, download, "sha512", base64.b64decode(package.sha512).hex())


def make_sheet(style: str, archive: Path, wanted: tuple[Thing, ...]) -> Image.Image:
    """All things in one image, each scaled to SIDE x SIDE."""
    rows = -(-len(wanted) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SIDE, rows * SIDE))
    for thing, content in zip(wanted, _images(style, archive, wanted), strict=True):
        with Image.open(io.BytesIO(content)) as image:
            small = image.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(small, corner(thing.index))
    return sheet


def _images(style: str, archive: Path, wanted: tuple[Thing, ...]) -> list[bytes]:
    """The image files of the things. Packages differ in whether a name has the variation selector fe0f."""
    package, missing, found = PACKAGES[style], [], []
    with tarfile.open(archive) as tar:
        members = {member.name: member for member in tar.getmembers()}
        for thing in wanted:
            names = [
                f"{package.folder}/{code}.{package.ending}" for code in (thing.code, thing.code.replace("-fe0f", ""))
            ]
            member = next((members[name] for name in names if name in members), None)
            content = tar.extractfile(member) if member else None
            if content is None:
                missing.append(f"{thing.name} ({thing.code})")
            else:
                found.append(content.read())
    if missing:
        raise ValueError(f"{package.requirement} has no image of: {', '.join(missing)}")
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--packages", type=Path, required=True, help="folder for the downloaded packages")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the sheets; default: this package's")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for style in STYLES:
        archive = fetch_package(style, options.packages)
        make_sheet(style, archive, things()).save(sheet_path(style, options.out), optimize=True)
        print(f"{sheet_path(style, options.out)}: {len(things())} things")
    return 0


if __name__ == "__main__":
    sys.exit(main())
