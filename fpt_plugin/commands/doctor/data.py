"""Diagnose the data of a config in another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .checks import Finding, Judged

PROBE = f'{__package__}.data_probe'


@dataclass(frozen=True)
class DataDiagnosis(Judged):
    """Findings on the data of a config."""

    config: str
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict:
        """Return the diagnosis as plain types for JSON."""
        return dict(ok=not self.failed, config=self.config,
                    findings=[asdict(finding) for finding in self.findings])


def examine_data(config: str, options: Sequence[str] = ()) -> DataDiagnosis:
    """Check all data of a config.

    Args:
        config: The config file.
        options: Settings that override the config's, as ``key=value``.

    Raises:
        RuntimeError: The config cannot be read, or mmdet or mmseg do not work.
    """
    package = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, [os.environ.get('PYTHONPATH'), package]))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, 'findings.json')
        # Imports may print to stdout; the findings are written to a file.
        process = subprocess.run(
            [sys.executable, '-W', 'ignore', '-m', PROBE, str(out), config,
             *(['--cfg-options', *options] if options else [])],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, errors='replace',
            env=dict(os.environ, PYTHONPATH=path))
        if process.returncode or not out.is_file():
            last = process.stderr.strip().splitlines()[-1:] or [
                f'the process ends with code {process.returncode}']
            raise RuntimeError(f'the data of {config} could not be checked: '
                               f'{last[0]}')
        found = json.loads(out.read_text(encoding='utf-8'))
    return DataDiagnosis(config, tuple(Finding(**finding) for finding in found))
