"""Groups of pictures, such as the frames of a film or the scans of a patient, that no split may divide."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from convae.datasets.image_folder import ImageFile
from convae.errors import ConvaeError
from convae.names import printable


def grouped(files: Sequence[ImageFile], pattern: str | None) -> list[ImageFile]:
    """Name each file's group by what the parentheses of `pattern` match in the file's name, and check all groups.

    Args:
        files: the pictures; without a pattern, they keep the groups that a table gave them.
        pattern: a regular expression with one pair of parentheses, or None.

    Raises:
        ConvaeError: a picture belongs to no group although others do, a group lies in two parts, or each group has one
            picture only.

    Example:
        >>> film = [ImageFile("train", "", f"cat_frame{number}.png", 68, "") for number in (1, 2)]
        >>> [file.group for file in grouped(film, r"(\\w+)_frame")]
        ['cat', 'cat']
    """
    if pattern:
        if any(file.group for file in files):
            raise ConvaeError(f"data.group = {pattern}: the table has a column of groups, too; set data.group to null")
        found = [re.search(pattern, Path(file.path).name) for file in files]
        files = [replace(file, group=match[1] or "" if match else "") for file, match in zip(files, found, strict=True)]
    groups = {file.group for file in files}
    if groups <= {""} and not pattern:
        return list(files)
    key = f"data.group = {pattern}" if pattern else "groups"
    if alone := next((file for file in files if not file.group), None):
        raise ConvaeError(f"{key}: {printable(alone.path)} belongs to none; each picture needs one")
    if len(groups) == len(files) > 1:
        raise ConvaeError(f"{key}: each of the {len(files)} pictures is one by itself, such as '{files[0].group}'")
    first: dict[str, ImageFile] = {}
    for file in files:
        other = first.setdefault(file.group, file)
        if _part(file) != _part(other):
            raise ConvaeError(
                f"{key}: '{file.group}' lies in two parts ({printable(other.path)} in {_part(other)}, "
                f"{printable(file.path)} in {_part(file)}); move one of them"
            )
    return list(files)


def _part(file: ImageFile) -> str:
    return "train" if file.part == "unlabelled" else file.part  # the encoder learns from both
