"""Convert docstrings to Markdown: roles, literals, tables and examples."""

from __future__ import annotations

import re

import griffe

ROLE = re.compile(r':(?:math|class|func|mod|meth|data|attr):`~?(?:\.*)([^`]+)`')
TABLE = re.compile(r'^(=+(?: +=+)+)\n(.+?)^\1\n(.+?)^\1$', re.S | re.M)


class PlainDocstrings(griffe.Extension):
    """Rewrite each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs) -> None:
        """Rewrite the docstring of a module, class or function."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """Return a docstring without reStructuredText."""
    text = re.sub(r'^ *\.\. math::\n|(?<=\w:):(?=\n\n)', '', text, flags=re.M)
    text = TABLE.sub(lambda m: f'```text\n{m[2]}{m[3]}```', text)
    text = re.sub(r'(?<!`)``(?!`)', '`', ROLE.sub(r'`\1`', text))
    return re.sub(r'^Example:$', 'Examples:', text, flags=re.M)
