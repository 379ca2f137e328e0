"""Compare the image sizes in an annotation file with those of the files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from .annotation_files import AnnotationFile
from .problems import Problem

NUM_CHECKED = 64  # number of file headers read at the start of a run
# EXIF tag, and its values that swap width and height.
ORIENTATION, SWAPPED = 274, (5, 6, 7, 8)


def check_image_sizes(key: str, file: AnnotationFile, folder: str,
                      every: bool = False) -> Iterator[Problem]:
    """Compare height and width with the image files' headers.

    mmdet clips boxes to the sizes in the annotation file and drops boxes outside
    of them; it draws masks in these sizes.

    Args:
        key: The config key of the file.
        file: The content of the file.
        folder: Folder of its images.
        every: Whether to check all images instead of an evenly spaced sample.
    """
    images = [i for i in file.images if isinstance(i.get('file_name'), str)]
    images = images if every else evenly_spaced(images, NUM_CHECKED)
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
        '' if every or len(images) == len(file.images) else ' that were checked')
    if missing:
        yield Problem(key, f'{len(missing)} of {of} are not there, such as '
                      f'{missing[0]}', fatal=len(missing) == len(images))
    if other:
        path, given, size = other[0]
        hint = ' (width and height are swapped)' if given == size[::-1] else ''
        yield Problem(key, f'{len(other)} of {of} have another size than their '
                      f'files, such as {path}: height and width are {given} in '
                      f'the annotations and {size} when it is loaded{hint}. '
                      'Boxes would be clipped and masks drawn in the wrong size',
                      fatal=False)


def loaded_size(path: Path) -> tuple[int, int] | None:
    """Return (height, width) of an image as OpenCV loads it; None if it is none.

    Only its header is read. OpenCV rotates images by their EXIF orientation.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            # Without EXIF data, getexif would load the whole PNG.
            if 'exif' in image.info and image.getexif().get(
                    ORIENTATION) in SWAPPED:
                width, height = height, width
    except Exception:  # mmcv may read formats that Pillow does not
        return None
    return height, width


def evenly_spaced(items: list, count: int) -> list:
    """Return at most ``count`` items of a list, at equal distances."""
    if len(items) <= count:
        return items
    return [items[i * (len(items) - 1) // (count - 1)] for i in range(count)]
