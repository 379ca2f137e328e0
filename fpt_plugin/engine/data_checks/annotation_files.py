"""Read annotation files in COCO's format, large files only in part.

The file of COCO's training set has 450 MB; parsing it takes ten seconds, and
mmdet parses it again. At the start of a run only some blocks of a large file are
read, at equal distances.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path

MAX_WHOLE_BYTES = 8 * 2**20  # larger files are read in part; this takes 0.2 s
NUM_BLOCKS, BLOCK_BYTES = 16, 2**18
CATEGORIES_BYTES = 2**20  # from the start or end, searched for the categories
_DECODER = json.JSONDecoder()
_AFTER_OBJECT = re.compile(r'\s*(,\s*\{|\])')  # after an object in a list


@dataclass(frozen=True)
class AnnotationFile:
    """The content of an annotation file, or a part of it.

    Attributes:
        path: The file.
        categories: All its categories; None if it has none.
        images: Its images.
        annotations: Its annotations; None if it has none.
        whole: Whether all images and annotations were read.
    """

    path: str
    categories: list | None
    images: list = field(repr=False)
    annotations: list | None = field(repr=False)
    whole: bool

    @property
    def extent(self) -> str:
        """How much was read, for messages; empty if everything was read."""
        return '' if self.whole else (
            f' (of {len(self.annotations or ())} annotations and '
            f'{len(self.images)} images that were read at the start; '
            'python -m fpt_plugin doctor --data CONFIG reads all)')


def read_annotations(path: str, whole: bool = False) -> AnnotationFile:
    """Read a file in COCO's format.

    Args:
        path: The file.
        whole: Whether to read a large file completely.

    Raises:
        ValueError: It is not JSON, or not in COCO's format.
    """
    if not whole and os.path.getsize(path) > MAX_WHOLE_BYTES:
        found = _read_in_part(path)
        if found is not None:
            return found
    try:
        content = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f'{path} cannot be read as JSON: {error}') from error
    if not isinstance(content, dict):
        raise ValueError(f'{path} must hold a dict with images, annotations and '
                         f'categories, got a {type(content).__name__}')
    for name in ('images', 'annotations', 'categories'):
        part = content.get(name, [])
        if not (isinstance(part, list) and all(isinstance(x, dict) for x in part)):
            raise ValueError(f'{name} of {path} must be a list of dicts')
    return AnnotationFile(path, content.get('categories'),
                          content.get('images', []), content.get('annotations'),
                          True)


def _read_in_part(path: str) -> AnnotationFile | None:
    """Read categories and some blocks; None if there are no categories."""
    with open(path, 'rb') as file, mmap(file.fileno(), 0,
                                        access=ACCESS_READ) as content:
        categories = _categories(content)
        if categories is None:
            return None
        images, annotations = [], []
        step = (len(content) - BLOCK_BYTES) // (NUM_BLOCKS - 1)
        for i in range(NUM_BLOCKS):
            block = content[i * step:i * step + BLOCK_BYTES]
            for found in _objects(block.decode('utf-8', 'replace')):
                if 'segments_info' in found:
                    return AnnotationFile(path, categories, [], None, False)
                # Skip videos (sizes and names) and their tracks (categories).
                if 'file_name' in found:
                    images.append(found)
                elif found.keys() & {'bbox', 'image_id', 'segmentation'}:
                    annotations.append(found)
                elif found.keys() & {'height', 'width'} and 'name' not in found:
                    images.append(found)
    return AnnotationFile(path, categories, images, annotations, False)


def _categories(content: mmap) -> list | None:
    """Find the list of categories at the beginning or end of a file."""
    key = b'"categories"'
    start = content.find(key, 0, CATEGORIES_BYTES)
    if start < 0:
        start = content.rfind(key)
    if start < 0:
        return None
    text = content[start + len(key):start + CATEGORIES_BYTES].decode(
        'utf-8', 'replace')
    bracket = text.find('[')
    if bracket < 0 or text[:bracket].strip() != ':':
        return None
    try:
        found, _ = _DECODER.raw_decode(text, bracket)
    except ValueError:
        return None
    valid = all(isinstance(c, dict) and {'id', 'name'} <= c.keys() for c in found)
    return found if found and valid else None


def _objects(text: str) -> Iterator[dict]:
    """Find the complete objects of lists in a piece of JSON.

    Objects cut at the ends are skipped, together with the objects inside them.
    """
    position = text.find('{')
    while position >= 0:
        try:
            found, end = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):
            end = position + 1
        else:
            if _AFTER_OBJECT.match(text, end):
                yield found
        position = text.find('{', end)
