"""Write the tables of the documents, from recorded results and from counts.

    python docs/tables.py            # write the tables into the documents
    python docs/tables.py --check    # fail if a table is out of date

A table is between ``<!-- table: NAME -->`` and ``<!-- /table -->``. NAME may have
arguments, such as ``study look-up``. The script measures nothing: it reads the JSON
files in benchmarks/ and counts, which takes seconds.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARKED = re.compile(r'(^<!-- table: (.+?) -->\n)(.*?)(^<!-- /table -->$)', re.S | re.M)
HALF = re.compile(r'^<!-- /?table\b', re.M)


def documents() -> list[Path]:
    """Return the documents that may have tables."""
    return [*sorted(ROOT.glob('*.md')), *sorted((ROOT / 'docs').rglob('*.md')),
            *sorted((ROOT / 'configs').glob('*/README.md')),
            ROOT / 'benchmarks' / 'README.md']


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = ['|' + ''.join(f' {cell} |' if str(cell) else ' |' for cell in row)
             for row in (header, *rows)]
    return '\n'.join([lines[0], '|' + '---|' * len(header), *lines[1:]])


def renew(text: str, make: Callable[[str], str], where: str) -> str:
    """Replace the tables between the markers.

    Args:
        text: A document.
        make: Returns the table of a name.
        where: Name of the document, for errors.

    Raises:
        ValueError: A start or end marker is missing.
    """
    if len(HALF.findall(text)) != 2 * len(MARKED.findall(text)):
        raise ValueError(f'{where}: every table needs one <!-- table: NAME --> and '
                         'one <!-- /table -->')
    return MARKED.sub(lambda m: f'{m[1]}{make(m[2])}\n{m[4]}', text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check all tables; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='write nothing')
    check = parser.parse_args(arguments).check
    from table_makers import make
    stale = []
    for path in documents():
        old = path.read_text(encoding='utf-8')
        name = str(path.relative_to(ROOT))
        new = renew(old, make, name)
        if new != old:
            stale.append(name)
            if not check:
                path.write_text(new, encoding='utf-8')
    if stale:
        print('tables are out of date, run python docs/tables.py:' if check else
              'written:', *stale, file=sys.stderr if check else sys.stdout)
    return int(check and bool(stale))


if __name__ == '__main__':
    sys.exit(main())
