"""The notebook of the guide runs in a new kernel, and is saved with its outputs."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / 'docs' / 'tutorial.ipynb'


@pytest.mark.slow
def test_notebook_runs(tmp_path, monkeypatch):
    """The notebook itself compares the grafted detector with the plain one."""
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(
        [str(ROOT), os.environ.get('PYTHONPATH', '')]))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name='python3',
                   resources=dict(metadata=dict(path=str(tmp_path)))).execute()
    shown = [output for cell in notebook.cells
             for output in cell.get('outputs', [])]
    assert any("neck=dict(type='FPT')" in output.get('text', '')
               for output in shown)
    assert any('image/jpeg' in output.get('data', {}) for output in shown)


def test_notebook_has_its_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert any('image/jpeg' in output.get('data', {})
               for output in cells[-1].outputs)
    assert all(cell.execution_count for cell in cells)
