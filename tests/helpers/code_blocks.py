"""Code blocks of the documents that tests run.

The line before a block is ``<!-- run -->``, or ``<!-- run: NAME -->`` where a test
prepares its files.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(
    r'^<!-- run(?:: (\w+))? -->\n+```python\n(.*?)^```$', re.M | re.S)
MARKER = re.compile(r'^<!-- run\b', re.M)


def code_blocks() -> list[tuple[str, str | None, str]]:
    """Return document, name and text of each marked block."""
    found = []
    for path in [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]:
        text, name = path.read_text(), str(path.relative_to(ROOT))
        blocks = BLOCK.findall(text)
        assert len(blocks) == len(MARKER.findall(text)), (
            f'{name}: a marker must stand before a block of python')
        found += [(name, mark or None, code) for mark, code in blocks]
    return found
