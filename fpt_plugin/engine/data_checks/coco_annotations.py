"""Check each image and annotation of a file in COCO's format.

For faulty entries mmdet and pycocotools raise a KeyError without the name of the
file or image, silently drop boxes, or train on NaN.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from math import isfinite
from numbers import Real

from .annotation_files import AnnotationFile
from .problems import Problem

# Values of Problem.fatal.
FATAL, WARNED = True, False
IMAGE_KEYS = ('id', 'file_name', 'height', 'width')
KEYS = ('id', 'image_id', 'category_id')


class _Faults:
    """Counts faults by kind and keeps the first example of each."""

    def __init__(self) -> None:
        self.counts: Counter = Counter()
        self.examples: dict = {}

    def add(self, text: str, fatal: bool, example: object) -> None:
        self.counts[text, fatal] += 1
        self.examples.setdefault(text, example)

    def problems(self, key: str, file: AnnotationFile) -> Iterator[Problem]:
        for (text, fatal), count in self.counts.items():
            yield Problem(key, f'{count} {text} in {file.path}{file.extent}, such as '
                          f'{self.examples[text]}', fatal)


def check_annotations(key: str, file: AnnotationFile, evaluated: bool = False,
                      masks: Collection[str] = ()) -> Iterator[Problem]:
    """Find entries that mmdet cannot read, reads wrongly or drops.

    Args:
        key: The config key of the file.
        file: The content of the file.
        evaluated: Whether predictions are compared with it.
        masks: Names of the classes whose masks are used.
    """
    faults = _Faults()
    _check_images(file, faults)
    sizes = {image.get('id'): image for image in file.images
             if _is_id(image.get('id'))}
    images = _KnownIds(sizes, file.whole)
    categories = _KnownIds((category.get('id') for category in file.categories or ()
                            if _is_id(category.get('id'))), True)
    masked = {category.get('id') for category in file.categories or ()
              if category.get('name') in masks and _is_id(category.get('id'))}
    unmatched = 0
    for annotation in file.annotations or ():
        name = _name(annotation, 'annotation')
        for part in KEYS:
            if part not in annotation:
                faults.add(f'annotations without {part!r}', FATAL, name)
            elif not _is_id(annotation[part]):
                faults.add(f'annotations whose {part!r} is no whole number', FATAL,
                           f'{name} with {annotation[part]!r}')
        number = annotation.get('id')
        if evaluated and isinstance(number, str) and not number.isdecimal():
            faults.add("annotations whose 'id' is no number, which the evaluation "
                       'needs', FATAL, name)
        if evaluated and number == 0:
            faults.add("annotations with the id 0, which COCO's evaluation treats "
                       'as no match (ids begin with 1)', WARNED, name)
        unmatched += images.check('image', annotation, name, faults)
        categories.check('category', annotation, name, faults)
        if annotation.get('ignore'):
            continue  # the dataset does not read the rest
        if 'iscrowd' not in annotation:
            faults.add("annotations without 'iscrowd'" + (
                ', which the evaluation needs' if evaluated else
                ' (taken as 0; an evaluation needs it)'), evaluated, name)
        image = annotation.get('image_id')
        size = sizes.get(image) if _is_id(image) else None
        kept = _check_box(annotation, size or {}, name, faults)
        kind = annotation.get('category_id')
        if kept and _is_id(kind) and kind in masked \
                and not annotation.get('segmentation'):
            faults.add("annotations without 'segmentation', while masks are loaded "
                       'or evaluated', FATAL, name)
    if file.whole:
        _check_duplicate_ids(file, faults)
    yield from faults.problems(key, file)
    if file.annotations and unmatched == len(file.annotations):
        yield Problem(key, f'no annotation of {file.path} belongs to one of its '
                      f'{len(file.images)} images: image_id must be the id of an '
                      'image')


class _KnownIds:
    """The ids that annotations may refer to; 7 and '7' are different ids."""

    def __init__(self, ids: Iterable, whole: bool) -> None:
        self.ids = set(ids)
        self.texts = {str(i) for i in self.ids}
        self.kinds = {isinstance(i, str) for i in self.ids}
        self.whole = whole

    def check(self, entity: str, annotation: dict, name: str,
              faults: _Faults) -> bool:
        """Check a reference; return True if no entry of the file has that id."""
        key = f'{entity}_id'
        given = annotation.get(key)
        if not self.ids or not _is_id(given) or given in self.ids:
            return False
        plural = 'categories' if entity == 'category' else f'{entity}s'
        if str(given) in self.texts or isinstance(given, str) not in self.kinds:
            faults.add(f'annotations whose {key} is of another type than the ids of '
                       f'the {plural}, text or number', FATAL,
                       f'{name} with {given!r}')
        elif self.whole:
            faults.add(f'annotations whose {key} none of the {plural} has, '
                       'which are left out', WARNED, f'{name} with {given!r}')
        return self.whole


def _check_images(file: AnnotationFile, faults: _Faults) -> None:
    for image in file.images:
        name = _name(image, 'image')
        for part in IMAGE_KEYS:
            if part not in image:
                faults.add(f'images without {part!r}', FATAL, name)
        if 'id' in image and not _is_id(image['id']):
            faults.add("images whose 'id' is no whole number", FATAL, name)
        for part in ('height', 'width'):
            if part in image and not (_is_number(image[part]) and image[part] > 0):
                faults.add(f'images whose {part} is not a number above 0', FATAL,
                           f'{name} with {image[part]!r}')


def _check_box(annotation: dict, size: dict, name: str, faults: _Faults) -> bool:
    """Check a box like the dataset does; return whether it keeps the box."""
    for part in ('bbox', 'area'):
        if part not in annotation:
            faults.add(f'annotations without {part!r}', FATAL, name)
    box, area = annotation.get('bbox'), annotation.get('area')
    if 'area' in annotation and not _is_number(area):
        faults.add('annotations whose area is no finite number', FATAL,
                   f'{name} with {area!r}')
        area = None
    if 'bbox' not in annotation:
        return False
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        faults.add('annotations whose bbox is not four finite numbers', FATAL,
                   f'{name} with {box!r}')
        return False
    x, y, width, height = box
    limits = [size.get(k) for k in ('width', 'height')]
    if width < 1 or height < 1 or area is not None and area <= 0:
        faults.add('annotations with a box of less than a pixel or no area, which '
                   'are left out', WARNED, f'{name} with bbox={box}, area={area}')
        return False
    if all(map(_is_number, limits)) and (
            min(x + width, limits[0]) <= max(x, 0)
            or min(y + height, limits[1]) <= max(y, 0)):
        faults.add('annotations with a box outside of the image, which are left '
                   'out', WARNED, f'{name} with bbox={box}')
        return False
    return True


def _check_duplicate_ids(file: AnnotationFile, faults: _Faults) -> None:
    """Reject duplicate ids: the last image would get the annotations of all."""
    for kind, entries in (('images', file.images),
                          ('annotations', file.annotations or ())):
        ids = Counter(e['id'] for e in entries if _is_id(e.get('id')))
        for number, count in ids.items():
            if count > 1:
                faults.add(f'ids that several {kind} share', FATAL, repr(number))


def _name(entry: dict, kind: str) -> str:
    """Identify an entry of the file, for messages."""
    for part in ('id', 'file_name', 'image_id'):
        if part in entry:
            return f'the {kind} of {part} {entry[part]!r}'
    return f'the {kind} {str(entry)[:60]}'


def _is_id(value: object) -> bool:
    """Return whether a value is an id: an integer (also 7.0) or a str."""
    return isinstance(value, (int, str)) and not isinstance(value, bool) \
        or isinstance(value, float) and value.is_integer()


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) \
        and isfinite(value)
