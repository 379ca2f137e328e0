"""The benchmark's command and its progress bar, for tests."""

import json

import pytest
from rich.console import Console
from rich.progress import Progress

from fpt_plugin.commands.benchmark.command import main, parser


@pytest.fixture
def bench(tmp_path):
    """Run one quick repeat without memory; returns the JSON and the table."""

    def run(*flags):
        out = main(parser().parse_args([str(flag) for flag in (
            *flags, '--repeats', 1, '--no-memory', '--out', tmp_path / 'a.json')]))
        table = out.with_suffix('.md')
        return (json.loads(out.read_text()),
                table.read_text() if table.exists() else '')

    return run


@pytest.fixture
def progress():
    with Progress(console=Console(quiet=True)) as progress:
        yield progress
