"""Reads annotation files in COCO's format, large ones in part.

A file of COCO's training set has 450 MB, and takes ten seconds to parse; its host
parses it again. At the start of a run blocks of a large file are read instead,
spread over all of it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path

WHOLE = 8 * 2**20  # bytes; up to here a file is read whole: 0.2 s
BLOCKS, BLOCK = 16, 2**18
HEAD = 2**20
_DECODER = json.JSONDecoder()
_NEXT = re.compile(r'\s*(,\s*\{|\])')  # after an object in a list


@dataclass(frozen=True)
class AnnotationFile:
    """What was read of a file.

    Attributes:
        path: The file.
        categories: Its categories, always all of them; None where it has none.
        images: Its images.
        annotations: Its annotations; None where it has none.
        whole: Whether all images and annotations were read.
    """

    path: str
    categories: list | None
    images: list = field(repr=False)
    annotations: list | None = field(repr=False)
    whole: bool

    @property
    def what(self) -> str:
        """How much was read, for messages; empty where it is everything."""
        return '' if self.whole else (
            f' (of {len(self.annotations or ())} annotations and '
            f'{len(self.images)} images that were read at the start; '
            'python -m fpt_plugin doctor --data CONFIG reads all)')


def read_annotations(path: str, whole: bool = False) -> AnnotationFile:
    """Read a file in COCO's format.

    Args:
        path: The file.
        whole: Whether a large file is read whole, too.

    Raises:
        ValueError: It is no JSON, or not in COCO's format.
    """
    if not whole and os.path.getsize(path) > WHOLE:
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
    """Categories and blocks of a file; None where they are not to be found."""
    with open(path, 'rb') as file, mmap(file.fileno(), 0,
                                        access=ACCESS_READ) as content:
        categories = _categories(content)
        if categories is None:
            return None
        images, annotations = [], []
        step = (len(content) - BLOCK) // (BLOCKS - 1)
        for i in range(BLOCKS):
            block = content[i * step:i * step + BLOCK]
            for found in _objects(block.decode('utf-8', 'replace')):
                if 'segments_info' in found:
                    return AnnotationFile(path, categories, [], None, False)
                # Videos have sizes and names, their tracks have categories.
                if 'file_name' in found:
                    images.append(found)
                elif found.keys() & {'bbox', 'image_id', 'segmentation'}:
                    annotations.append(found)
                elif found.keys() & {'height', 'width'} and 'name' not in found:
                    images.append(found)
    return AnnotationFile(path, categories, images, annotations, False)


def _categories(content: mmap) -> list | None:
    """The list of categories, which stands at the end or at the beginning."""
    key = b'"categories"'
    start = content.find(key, 0, HEAD)
    if start < 0:
        start = content.rfind(key)
    if start < 0:
        return None
    text = content[start + len(key):start + HEAD].decode('utf-8', 'replace')
    bracket = text.find('[')
    if bracket < 0 or text[:bracket].strip() != ':':
        return None
    try:
        found, _ = _DECODER.raw_decode(text, bracket)
    except ValueError:
        return None
    whole = all(isinstance(c, dict) and {'id', 'name'} <= c.keys() for c in found)
    return found if found and whole else None


def _objects(text: str) -> Iterator[dict]:
    """Whole objects in lists of a piece of JSON.

    What is cut at its ends is left out, and with it what was inside of that.
    """
    position = text.find('{')
    while position >= 0:
        try:
            found, end = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):
            end = position + 1
        else:
            if _NEXT.match(text, end):
                yield found
        position = text.find('{', end)
