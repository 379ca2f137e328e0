"""Add the repository's other documents to the site, and rewrite their links.

The README is the first page; the READMEs of configs and benchmarks are further
pages. Links work both in the repository and in the site: links to documents become
links to pages, links to other files point to ``repo_url``, or become plain text if
it is not set.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
# Documents outside of docs/, and their paths in the site.
PAGES = {
    'README.md': 'index.md',
    'CONTRIBUTING.md': 'contributing.md',
    'CHANGELOG.md': 'changelog.md',
    'benchmarks/README.md': 'benchmarks/index.md',
    'benchmarks/gpu-nvidia-h200.md': 'benchmarks/gpu-nvidia-h200.md',
    **{f'configs/{path.parent.name}/README.md': f'configs/{path.parent.name}.md'
       for path in (ROOT / 'configs').glob('*/README.md')},
}
PICTURES = {f'resources/{path.name}': f'resources/{path.name}'
            for path in (ROOT / 'resources').iterdir()}
LINK = re.compile(r'(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)')
CODE = re.compile(r'(^```.*?^```$)', re.S | re.M)


def on_files(files, config):
    """Add the documents and pictures outside of docs/."""
    for source, target in {**PAGES, **PICTURES}.items():
        files.append(File.generated(config, target,
                                    abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrite links to files of the repository."""
    target = page.file.src_uri
    source = next((s for s, t in PAGES.items() if t == target), f'docs/{target}')
    parts = CODE.split(markdown)
    return ''.join(part if part.startswith('```') else LINK.sub(
        lambda m: _rewritten(m, source, target, config.repo_url), part)
        for part in parts)


def _rewritten(match: re.Match, source: str, target: str, url: str | None) -> str:
    picture, text, link = match.groups()
    if re.match(r'[a-z]+:|#', link):
        return match[0]
    path, hash_, anchor = link.partition('#')
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    place = {**PAGES, **PICTURES}.get(path)
    if place is None and path.startswith('docs/'):
        place = path[len('docs/'):]
    if place is not None:
        place = posixpath.relpath(place, posixpath.dirname(target) or '.')
        return f'{picture}[{text}]({place}{hash_}{anchor})'
    if not (ROOT / path).exists():
        return match[0]  # mkdocs reports it
    return f'[{text}]({url.rstrip("/")}/blob/main/{path})' if url else text
