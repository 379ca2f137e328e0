"""Processes of tools/train.py and tools/test.py that can be killed.

The imports take longer than a small training: one process imports the libraries, and
forks another one for each command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARENT = """
import contextlib, json, os, runpy, sys
with contextlib.redirect_stdout(sys.stderr):  # imports may print
    import fpt_plugin, mmdet.apis, pycocotools.coco, fpt_plugin.commands.train
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if not pid:
        os.dup2(os.open(job['log'], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        os.chdir(job['cwd'])
        sys.argv = job['argv']
        exec(job['before'])
        runpy.run_path(sys.argv[0], run_name='__main__')
        sys.exit(0)
    print(pid, flush=True)
    sys.stdin.readline()  # until then the number belongs to no other process
    print(os.waitpid(pid, 0)[1], flush=True)
"""


class Tools:
    """Run the tools, one at a time."""

    def __init__(self) -> None:
        environ = dict(os.environ, OMP_NUM_THREADS='1', PYTHONUNBUFFERED='1')
        environ['PYTHONPATH'] = os.pathsep.join(
            filter(None, [str(ROOT), environ.get('PYTHONPATH')]))
        self.parent = subprocess.Popen(
            [sys.executable, '-c', PARENT], env=environ, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.calls = 0

    def __call__(self, tool: str, *args: str, before: str = '',
                 kill: tuple | None = None) -> tuple[int, str]:
        """Run ``tools/<tool>.py``.

        Args:
            tool: Its name.
            args: Its arguments.
            before: Statements that the process runs first.
            kill: A text of the output, a signal, and the seconds between.

        Returns:
            Its exit code, negative for a signal, and its output.
        """
        self.calls += 1
        log = Path(f'output-{self.calls}.txt').resolve()
        log.touch()
        job = dict(argv=[str(ROOT / 'tools' / f'{tool}.py'), *args],
                   cwd=os.getcwd(), log=str(log), before=before)
        print(json.dumps(job), file=self.parent.stdin, flush=True)
        pid = int(self.parent.stdout.readline())
        if kill is not None:
            text, how, seconds = kill
            end = time.monotonic() + 300
            while not (text in log.read_text() or _ended(pid)
                       or time.monotonic() > end):
                time.sleep(0.002)
            time.sleep(seconds)
            os.kill(pid, how)
        print(file=self.parent.stdin, flush=True)
        status = int(self.parent.stdout.readline())
        return os.waitstatus_to_exitcode(status), log.read_text()

    def close(self) -> None:
        """End the process that forks the others."""
        self.parent.stdin.close()
        self.parent.wait(timeout=60)
        self.parent.stdout.close()


def _ended(pid: int) -> bool:
    """Tell whether a process has ended: it is a zombie until waitpid."""
    return ') Z' in Path(f'/proc/{pid}/stat').read_text()
