"""Sizes of images in an annotation file against those of the image files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from .annotation_files import AnnotationFile
from .problems import Problem

SAMPLE = 64  # files whose headers are read at the start of a run
ORIENTATION, TURNED = 274, (5, 6, 7, 8)  # of EXIF: width and height change places


def check_image_sizes(key: str, file: AnnotationFile, folder: str,
                      every: bool = False) -> Iterator[Problem]:
    """Compare height and width with the image files' headers.

    The host clips boxes to the sizes of the annotation file and leaves out what is
    outside of them; masks are drawn in these sizes.

    Args:
        key: The key of the config that names the file.
        file: What was read of it.
        folder: Where its images are.
        every: Whether all images are looked at, or some spread over the file.
    """
    images = [i for i in file.images if isinstance(i.get('file_name'), str)]
    images = images if every else spread(images, SAMPLE)
    missing, other = [], []
    for image in images:
        path = Path(folder, image['file_name'])
        if not path.is_file():
            missing.append(path)
            continue
        size = loaded_size(path)
        given = image.get('height'), image.get('width')
        if size is not None and None not in given and size != given:
            other.append((path, given, size))
    of = f'{len(images)} images of {file.path}' + (
        '' if every or len(images) == len(file.images) else ' that were looked at')
    if missing:
        yield Problem(key, f'{len(missing)} of {of} are not there, such as '
                      f'{missing[0]}', fatal=len(missing) == len(images))
    if other:
        path, given, size = other[0]
        turned = ' (width and height have changed places)' \
            if given == size[::-1] else ''
        yield Problem(key, f'{len(other)} of {of} have another size than their '
                      f'files, such as {path}: height and width are {given} in '
                      f'the annotations and {size} when it is loaded{turned}. '
                      'Boxes are clipped and masks drawn in the wrong size',
                      fatal=False)


def loaded_size(path: Path) -> tuple[int, int] | None:
    """Height and width as OpenCV loads an image; None where it is none.

    Only its header is read. OpenCV turns photographs as their EXIF data say.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            # Pillow would load a whole PNG to look for what is not there.
            if 'exif' in image.info and image.getexif().get(
                    ORIENTATION) in TURNED:
                width, height = height, width
    except Exception:  # the host may read what Pillow does not
        return None
    return height, width


def spread(things: list, count: int) -> list:
    """At most so many of a list, at equal distances."""
    if len(things) <= count:
        return things
    return [things[i * (len(things) - 1) // (count - 1)] for i in range(count)]
