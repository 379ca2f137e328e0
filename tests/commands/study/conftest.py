"""Small studies for the tests."""

from pathlib import Path

import pytest

from fpt_plugin.commands.study import command

SHIPPED = Path(__file__).parents[3] / 'configs' / 'studies'


@pytest.fixture
def make_study(tmp_path):
    """Write a study over a shipped one; its results and runs are beside it."""

    def make(base, text, name='small'):
        path = tmp_path / f'{name}.py'
        path.write_text(f'_base_ = {str(SHIPPED / base)!r}\n{text}')
        return path

    return make


@pytest.fixture
def run(tmp_path):
    """Run the study command."""
    return lambda study, *args: command.main(command.parser().parse_args([
        str(study), '--results', str(tmp_path / 'results'), '--work-dir',
        str(tmp_path / 'work'), *map(str, args)]))
