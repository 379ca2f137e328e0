"""Marked code blocks of the documents run as they stand."""

import pytest
from helpers.code_blocks import code_blocks

BLOCKS = [(where, code) for where, name, code in code_blocks() if name is None]


@pytest.mark.parametrize('where, code', BLOCKS, ids=[
    f'{where}-{i}' for i, (where, _) in enumerate(BLOCKS)])
def test_blocks_run(where, code):
    assert 'assert ' in code
    exec(compile(code, where, 'exec'), {})


def test_layers_neck_and_functions_have_blocks():
    text = '\n'.join(code for _, code in BLOCKS)
    for name in ('SelfTransformer', 'FPT', 'LambdaLayer', 'position_lambda'):
        assert f'{name}(' in text
