"""OmniStyle-150K: `content`, `style`, and targets named `<content file>&&<style file>.<suffix>`."""

from __future__ import annotations

from pathlib import Path

from data.convert.archive import open_collection
from data.convert.source import Block, Picture, RawTriplet, Reject, in_blocks


def blocks(source: Path, size: int, dataset: str = "omnistyle") -> list[Block]:
    """The corpus in blocks of `size` triplets, in the order of the target names."""
    contents, rejects = open_collection(source, "content")
    styles, more = open_collection(source, "style")
    targets, still_more = open_collection(source, "OmniStyle-150K", "target")
    items: list[RawTriplet | Reject] = [*rejects, *more, *still_more]
    for name in sorted(targets):
        items.append(_triplet(name, Picture(name, targets[name]), contents, styles))
    return in_blocks(dataset, items, size)


def _triplet(name: str, target: Picture, contents: dict, styles: dict) -> RawTriplet | Reject:
    stem = name.rpartition(".")[0]
    cuts = [i for i in range(len(stem)) if stem.startswith("&&", i)]
    if not cuts:
        return Reject(name, "bad name", "a target is named <content file>&&<style file>.<suffix>")
    pairs = [(stem[:i], stem[i + 2 :]) for i in cuts]
    for content, style in pairs:  # a file name may itself contain &&
        if content in contents and style in styles:
            return RawTriplet(Picture(content, contents[content]), Picture(style, styles[style]), target)
    content, style = pairs[0]
    if not any(content in contents for content, _ in pairs):
        return Reject(name, "missing content", f"no content file {content!r}")
    return Reject(name, "missing style", f"no style file {style!r}")
