"""The names of classes in a config against those of an annotation file.

mmdet's CocoDataset numbers labels in the order in which the *file* lists the
categories, and names them in the order of ``classes``. Where the two differ the
AP is right and every name is wrong; a name that the file does not have shifts the
numbers of all that follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from .problems import Problem

SHOWN = 12


def check_class_names(key: str, classes: Sequence[str], path: str,
                      categories: Sequence[dict] | None,
                      evaluated: bool) -> Iterator[Problem]:
    """Compare names in the order in which labels get their numbers.

    A subset of the file's categories in the file's order is fine.

    Args:
        key: The key of the config that names the file.
        classes: What the dataset calls its classes.
        path: The annotation file.
        categories: Its categories.
        evaluated: Whether predictions are compared with the file.
    """
    broken = [c for c in categories or () if not {'id', 'name'} <= c.keys()]
    if not categories or broken:
        yield Problem(key, f'{path} has no categories' if not categories else
                      f'{len(broken)} categories of {path} lack an id or a name, '
                      f'such as {broken[0]}')
        return
    names = [category['name'] for category in categories]
    ids = [category['id'] for category in categories]
    numbered = [name for name in names if name in classes]
    missing = [name for name in classes if name not in names]
    if len(set(numbered)) < len(numbered) or len(set(ids)) < len(ids):
        twice = sorted({str(n) for n in numbered if numbered.count(n) > 1} or
                       {str(i) for i in ids if ids.count(i) > 1})
        yield Problem(key, f'{path} lists categories twice: {some_names(twice)}; '
                      'each needs one name and one id')
    elif missing:
        yield from _missing(key, classes, path, names, numbered, missing, evaluated)
    elif numbered != list(classes):
        yield Problem(key, _order(list(classes), path, numbered))


def _missing(key: str, classes: Sequence[str], path: str, names: list[str],
             numbered: list[str], missing: list[str],
             evaluated: bool) -> Iterator[Problem]:
    unused = [name for name in names if name not in classes]
    text = f'{_count(missing, "class")} {some_names(missing)} ' \
        f'of the dataset {"is" if len(missing) == 1 else "are"} no category of ' \
        f'{path}, which has {some_names(names)}'
    # The numbers of the others stay: the file only lacks the last classes.
    harmless = not unused and numbered == list(classes)[:len(numbered)]
    close = {name: get_close_matches(str(name), map(str, unused), 1)
             for name in missing}
    hints = [f'{name!r} for {found[0]!r}' for name, found in close.items() if found]
    if hints:
        text += f'; is it {", ".join(hints[:3])}?'
    if harmless:
        text += '; predictions of them cannot be evaluated' if evaluated else \
            '; nothing is learnt of them'
    else:
        text += '. Their boxes are left out, and the labels of other classes get ' \
            'other numbers: give the dataset ' \
            "metainfo=dict(classes=(...)) with the file's names in its order"
    yield Problem(key, text, fatal=evaluated or not harmless)


def _order(classes: list[str], path: str, numbered: list[str]) -> str:
    if len(classes) <= SHOWN:
        orders = f'classes={tuple(classes)}, in the file {tuple(numbered)}'
    else:
        wrong = [(i, a, b) for i, (a, b) in enumerate(zip(classes, numbered))
                 if a != b]
        orders = f'{len(wrong)} of {len(classes)} names differ: ' + ', '.join(
            f'label {i} is {a!r} in classes and {b!r} in the file'
            for i, a, b in wrong[:4])
    return ('mmdet numbers labels in the order of the categories of the file, not '
            f'in that of classes, so that names of {path} would be swapped: '
            f'{orders}. Write classes in the order of the file: the numbers of '
            'the labels, and with them the weights trained on it, stay as they '
            'are. Where the weights or another file of these data have the order '
            "of classes, sort the file's categories instead")


def check_is_sequence(key: str, classes: object) -> Iterator[Problem]:
    """Names must be a list: mmengine makes of one word a class for each letter."""
    if isinstance(classes, str):
        yield Problem(key, 'classes must be a tuple or a list of names, or a file '
                      f'with a name a line, got the text {classes!r}: one class is '
                      f'written classes=({classes!r}, ), with a comma')


def some_names(names: Sequence[str], shown: int = SHOWN) -> str:
    """A few names of a list, and how many there are."""
    text = ', '.join(map(repr, names[:shown]))
    return text if len(names) <= shown else f'{text} ... ({len(names)})'


def _count(things: Sequence, singular: str) -> str:
    return singular if len(things) == 1 else f'{len(things)} {singular}es'
