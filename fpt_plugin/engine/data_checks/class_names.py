"""Compare the class names of a config with those of an annotation file.

mmdet's CocoDataset numbers labels in the order of the categories in the *file*,
and names them in the order of ``classes``. If the orders differ, the AP is right
and the names are wrong. A name that the file does not have shifts the numbers of
all later classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from .problems import Problem

MAX_SHOWN = 12  # number of names in a message


def check_class_names(key: str, classes: Sequence[str], path: str,
                      categories: Sequence[dict] | None,
                      evaluated: bool) -> Iterator[Problem]:
    """Compare the names of a dataset with the categories of its file.

    A subset of the file's categories in the file's order is correct.

    Args:
        key: The config key of the file.
        classes: Class names of the dataset.
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
    # If the file lacks only the last classes, the numbers of the others are right.
    harmless = not unused and numbered == list(classes)[:len(numbered)]
    close = {name: get_close_matches(str(name), map(str, unused), 1)
             for name in missing}
    hints = [f'{name!r} for {found[0]!r}' for name, found in close.items() if found]
    if hints:
        text += f'; is it {", ".join(hints[:3])}?'
    if harmless:
        text += '; their predictions cannot be evaluated' if evaluated else \
            '; they are not trained'
    else:
        text += '. Their boxes are left out, and other classes get wrong label ' \
            'numbers: give the dataset ' \
            "metainfo=dict(classes=(...)) with the file's names in its order"
    yield Problem(key, text, fatal=evaluated or not harmless)


def _order(classes: list[str], path: str, numbered: list[str]) -> str:
    if len(classes) <= MAX_SHOWN:
        orders = f'classes={tuple(classes)}, in the file {tuple(numbered)}'
    else:
        wrong = [(i, a, b) for i, (a, b) in enumerate(zip(classes, numbered))
                 if a != b]
        orders = f'{len(wrong)} of {len(classes)} names differ: ' + ', '.join(
            f'label {i} is {a!r} in classes and {b!r} in the file'
            for i, a, b in wrong[:4])
    return ('mmdet numbers labels in the order of the categories of the file, not '
            f'in that of classes, so that names of {path} would be swapped: '
            f'{orders}. Write classes in the order of the file: label numbers do '
            'not change, so weights trained on this file remain valid. If the '
            'weights or another file of these data have the order of classes, '
            "sort the file's categories instead")


def check_is_sequence(key: str, classes: object) -> Iterator[Problem]:
    """Reject a str: mmengine would make a class of each letter."""
    if isinstance(classes, str):
        yield Problem(key, 'classes must be a tuple or a list of names, or a file '
                      f'with one name per line, got the text {classes!r}: write one '
                      f'class as classes=({classes!r}, ), with a comma')


def some_names(names: Sequence[str], shown: int = MAX_SHOWN) -> str:
    """Return the first names of a list, and their number if there are more."""
    text = ', '.join(map(repr, names[:shown]))
    return text if len(names) <= shown else f'{text} ... ({len(names)})'


def _count(items: Sequence, singular: str) -> str:
    return singular if len(items) == 1 else f'{len(items)} {singular}es'
