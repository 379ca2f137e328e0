"""Diagnosis of the data of a config, found in another process."""

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
    """What was found out about the data of a config."""

    config: str
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict:
        """All of it in plain types."""
        return dict(ok=not self.failed, config=self.config,
                    findings=[asdict(finding) for finding in self.findings])


def examine_data(config: str, options: Sequence[str] = ()) -> DataDiagnosis:
    """Look at all data that a config names.

    Args:
        config: The config file.
        options: Settings that override the config's, as ``key=value``.

    Raises:
        RuntimeError: The config cannot be read, or the hosts do not work.
    """
    package = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, [os.environ.get('PYTHONPATH'), package]))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, 'findings.json')
        # The hosts print: what is said here is for the findings alone.
        ended = subprocess.run(
            [sys.executable, '-W', 'ignore', '-m', PROBE, str(out), config,
             *(['--cfg-options', *options] if options else [])],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, errors='replace',
            env=dict(os.environ, PYTHONPATH=path))
        if ended.returncode or not out.is_file():
            last = ended.stderr.strip().splitlines()[-1:] or [
                f'the process ends with code {ended.returncode}']
            raise RuntimeError(f'the data of {config} were not looked at: '
                               f'{last[0]}')
        found = json.loads(out.read_text(encoding='utf-8'))
    return DataDiagnosis(config, tuple(Finding(**finding) for finding in found))
