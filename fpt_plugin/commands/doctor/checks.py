"""Judge the facts about an environment, and say how to fix it.

Only the standard library is imported, so the checks work in a broken environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ...openmmlab.pins import LIBRARIES, REQUIREMENTS, SETUPTOOLS, TORCH, stack_of

OK, WARN, FAIL, SKIP = 'OK', 'WARN', 'FAIL', 'SKIP'
OPENCV = ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python',
          'opencv-contrib-python-headless')
OTHERS = ('torch', 'numpy', 'setuptools', 'ftfy', 'regex', 'fpt-plugin')
DISTRIBUTIONS = (*(name for names, _, _ in LIBRARIES.values() for name in names),
                 *OPENCV, *OTHERS)
INSTALL_SELF = 'in the checkout: pip install --no-build-isolation -e .'
OLDER_SETUPTOOLS = f"pip install '{SETUPTOOLS}'"


@dataclass(frozen=True)
class Result:
    """Result of a step of probe.py.

    Attributes:
        ok: Whether it succeeded; None if it was not tried.
        detail: Information from the step.
        error: Type and message of its exception.
        because: The failed step that it depends on.
    """

    ok: bool | None
    detail: dict = field(default_factory=dict)
    error: str = ''
    because: str = ''


@dataclass(frozen=True)
class Facts:
    """Facts about the environment.

    Attributes:
        python: Version of Python.
        installed: Versions of the installed DISTRIBUTIONS.
        results: Results by step.
        wanted: The libraries that must work, of mmdet and mmseg.
        package: Folder of the package that this doctor belongs to.
    """

    python: tuple[int, ...]
    installed: dict[str, str]
    results: dict[str, Result]
    wanted: tuple[str, ...] = ('mmdet', 'mmseg')
    package: str = ''

    def of(self, host: str) -> dict[str, str]:
        """Return the installed distributions of a library, with versions."""
        return {
            name: self.installed[name]
            for name in LIBRARIES[host][0] if name in self.installed
        }

    @property
    def stack(self) -> str:
        """``stock``, ``onedl``, ``mixed`` or ``none``."""
        stacks = {stack_of(name) for host in LIBRARIES for name in self.of(host)}
        return 'mixed' if len(stacks) > 1 else next(iter(stacks), 'none')

    def requirement(self, host: str) -> str:
        """Return the requirement of a library for the installed stack."""
        return REQUIREMENTS['onedl' if self.stack == 'onedl' else 'stock'][host]

    def works(self, step: str) -> bool:
        """Return whether a step was tried and succeeded."""
        return step in self.results and self.results[step].ok is True


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis; ``cure`` says how to fix the problem."""

    name: str
    status: str
    text: str
    cure: str = ''


class Judged:
    """Base class of diagnoses with findings."""

    findings: tuple[Finding, ...]

    @property
    def failed(self) -> bool:
        """Whether there are failures; warnings do not count."""
        return any(finding.status == FAIL for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 1 if there are failures."""
        return int(self.failed)


def release(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: ``2.1.0rc1`` is (2, 1, 0)."""
    return tuple(map(int, re.match(r'(\d+(?:\.\d+)*)?', version)[0].split('.'))) \
        if version[:1].isdigit() else ()


def diagnose(facts: Facts) -> list[Finding]:
    """Return all findings, starting with Python and the distributions."""
    found = [check_python(facts), check_stack(facts)]
    for check in (check_hosts, check_setuptools, check_mmseg_needs, check_opencv,
                  check_steps):
        found += check(facts)
    return found


# ----------------------------------------------------------------- installed


def check_python(facts: Facts) -> Finding:
    """Check the version of Python."""
    given = '.'.join(map(str, facts.python))
    cure = 'create an environment with Python 3.11: tools/environment.sh'
    if facts.python < (3, 9):
        return Finding('python', FAIL, f'{given} is older than 3.9', cure)
    if facts.python >= (3, 13):
        return Finding('python', WARN,
                       f'{given}: OpenMMLab was not tested with Python above 3.12',
                       cure)
    return Finding('python', OK, given)


def check_stack(facts: Facts) -> Finding:
    """Check that one stack of OpenMMLab is installed."""
    name, stack = 'distribution', facts.stack
    if stack == 'none':
        return Finding(
            name, FAIL, 'neither OpenMMLab nor its fork onedl is installed',
            'tools/environment.sh creates an environment with either')
    if stack == 'mixed':
        given = ', '.join(name for host in LIBRARIES for name in facts.of(host))
        return Finding(
            name, WARN, f'OpenMMLab and its fork onedl are mixed: {given}',
            'uninstall the packages of one of them')
    return Finding(name, OK, stack)


def check_hosts(facts: Facts) -> Iterator[Finding]:
    """Check that each library has one distribution, of a supported version."""
    for host, (_, low, high) in LIBRARIES.items():
        given = facts.of(host)
        text = ', '.join(f'{name} {version}' for name, version in given.items())
        cure = _install(facts, host)
        if len(given) > 1:
            yield Finding(
                host, FAIL, f'{text}: their files overwrite each other',
                f"pip uninstall -y {' '.join(given)}; then {cure}")
        elif not given:
            # A source checkout on the path works without metadata.
            if not facts.works(host) and (host not in ('mmdet', 'mmseg')
                                          or host in facts.wanted):
                other = [h for h in facts.wanted if h != host]
                skip = f'; or --hosts {other[0]}, if {host} is not needed' \
                    if host in facts.wanted and other else ''
                yield Finding(host, FAIL, 'is not installed', cure + skip)
        else:
            version = release(*given.values())
            if not release(low) <= version < release(high):
                yield Finding(host, FAIL,
                              f'{text}, but >={low},<{high} is needed', cure)
            else:
                yield Finding(host, OK, text)


def check_setuptools(facts: Facts) -> Iterator[Finding]:
    """Check setuptools: stock mmengine imports pkg_resources, removed in 82."""
    given = facts.installed.get('setuptools')
    needed = any(
        stack_of(name) == 'stock' and release(version) < (0, 11)
        for name, version in facts.of('mmengine').items())
    if not needed:  # other imports of it fail in the step of the bases
        if given:
            yield Finding('setuptools', OK, given)
    elif given is None or release(given) >= (82, ):
        yield Finding(
            'setuptools', FAIL,
            f"{given or 'is not installed'}: there is no pkg_resources, so "
            'mmdet:: and mmseg:: bases do not load', OLDER_SETUPTOOLS)
    elif release(given) >= (81, ):
        yield Finding('setuptools', WARN,
                      f'{given} is the last one with pkg_resources', OLDER_SETUPTOOLS)
    else:
        yield Finding('setuptools', OK, given)


def check_mmseg_needs(facts: Facts) -> Iterator[Finding]:
    """Check the packages that mmseg imports but does not require."""
    missing = [n for n in ('ftfy', 'regex') if n not in facts.installed]
    if 'mmseg' in facts.wanted and facts.of('mmseg') and missing \
            and not facts.works('mmseg.models'):
        yield Finding('mmseg', FAIL, f"imports {' and '.join(missing)}, which is "
                      'not installed', f"pip install {' '.join(missing)}")


def check_opencv(facts: Facts) -> Iterator[Finding]:
    """Check that only one build of OpenCV is installed."""
    given = [name for name in OPENCV if name in facts.installed]
    if len(given) > 1:
        yield Finding(
            'opencv', WARN,
            f"{' and '.join(given)} overwrite each other's files",
            f"pip uninstall -y {' '.join(given)}; then pip install {given[0]}")


# ------------------------------------------------------------------ tried


def check_steps(facts: Facts) -> Iterator[Finding]:
    """Convert the results of the probe's steps to findings."""
    for step, result in facts.results.items():
        if result.ok:
            yield from _success(facts, step, result.detail)
        elif result.ok is None:
            yield Finding(step, SKIP, f'not tried, as {result.because} fails')
        elif step in LIBRARIES and not facts.of(step) and result.error.endswith(
                f'No module named {step!r}'):
            continue  # check_hosts has reported it
        elif _never_installed(step, result.error):
            yield Finding(
                step, WARN, 'this checkout was never installed, so its configs '
                'are found only by their paths', INSTALL_SELF)
        else:
            yield Finding(step, FAIL, _shortened(result.error),
                          cure_for(facts, step, result.error))


def _success(facts: Facts, step: str, detail: dict) -> Iterator[Finding]:
    if step == 'torch':
        yield from _torch(detail)
    elif step == 'mmcv.ops':
        yield from _ops(facts, detail)
    elif step == 'fpt_plugin':
        given = detail['path']
        if facts.package and given != facts.package:
            yield Finding(
                step, WARN, f'{given} is imported, but this doctor belongs to '
                f'{facts.package}', INSTALL_SELF)
        else:
            yield Finding(step, OK, f"{detail['version']}, {given}")
    elif step in LIBRARIES:
        # check_hosts has judged distributions; this is a checkout without one.
        if not facts.of(step):
            yield Finding(step, OK, f"{detail['version']}, {detail['path']}")
    elif step == 'resume':
        torch = facts.results['torch'].detail['version']
        yield Finding(
            step, OK, "mmengine's training checkpoints load safely" +
            (' after fpt_plugin is imported; torch refuses them without it'
             if release(torch) >= (2, 6) else ''))
    elif step.endswith('names'):
        yield Finding(step, OK, ', '.join(detail['names']))
    elif step.endswith('forward'):
        yield Finding(step, OK, 'a small FPT and a lambda layer run')
    else:
        text = detail.get('base') or detail.get('version') or 'works'
        yield Finding(step, OK, text)


def _torch(detail: dict) -> Iterator[Finding]:
    version, cuda = detail['version'], detail['built_for']
    if release(version) < (2, 1):
        yield Finding('torch', FAIL, f'{version} is older than 2.1',
                      "pip install 'torch>=2.1', then rebuild mmcv")
        return
    yield Finding('torch', OK, version)
    if detail['devices']:
        yield Finding('cuda', OK, f"{cuda}, {', '.join(detail['devices'])}")
    elif cuda:
        yield Finding(
            'cuda', WARN, f'this torch is for CUDA {cuda} and finds no device',
            'check nvidia-smi; on a machine without a GPU a CPU build of torch '
            'does the same and is smaller')
    else:
        yield Finding('cuda', OK, 'none: this torch is for CPUs')


def _ops(facts: Facts, detail: dict) -> Iterator[Finding]:
    given = detail['cuda']
    torch = facts.results.get('torch')
    wanted = torch.detail.get('built_for') if torch else None
    text = f"run on {' and '.join(detail['devices'])}"
    if wanted and release(given) and release(given)[:1] != release(wanted)[:1]:
        yield Finding(
            'mmcv.ops', WARN,
            f'{text}; compiled with CUDA {given}, torch with {wanted}',
            rebuild(facts))
    else:
        yield Finding('mmcv.ops', OK, text)


def _never_installed(step: str, error: str) -> bool:
    return step == 'fpt_plugin:: bases' and bool(
        re.search(r'No such file or directory: .*\.mim', error))


def _shortened(error: str, length: int = 300) -> str:
    text = ' '.join(error.split())
    return text if len(text) <= length else f'{text[:length]} ...'


# ------------------------------------------------------------------------- fixes

# Patterns of error messages, and how to fix them; {0} is the first group.
CURES = (
    (r'libc10|libtorch|libcud|undefined symbol', '{rebuild}'),
    (r'lib(?:GL|EGL|gthread|glib|SM|X\w+)[\w.-]*: cannot open shared',
     'pip uninstall -y opencv-python; pip install opencv-python-headless; or '
     'install the system library (Debian, Ubuntu: apt-get install libgl1 '
     'libglib2.0-0)'),
    (r'(lib[\w.+-]+): cannot open shared',
     'install {0} with the system package manager'),
    (r"No module named 'pkg_resources'", OLDER_SETUPTOOLS),
    (r"No module named 'mmcv\.(?:_ext|ops)", '{rebuild}'),
    (r'(?:not compiled with|without) (?:GPU|CUDA)|no kernel image', '{rebuild}'),
    (r"No module named '(?:ftfy|regex)'", 'pip install ftfy regex'),
    (r'MMCV==\S+ is used but incompatible', '{install_mmcv}'),
    (r'MMEngine==\S+ is used but incompatible', '{install_mmengine}'),
    (r'_ARRAY_API not found|NumPy 1\.x|multiarray failed to import'
     r'|numpy\.dtype size changed',
     "pip install 'numpy<2', or newer builds of the packages compiled for it"),
    (r'Weights only load failed',
     'import fpt_plugin before the checkpoint is read; otherwise update it'),
    (r'fpt_plugin/\.mim', INSTALL_SELF),
    (r'(mmdet|mmseg)/\.mim', 'pip install, not a bare checkout: {install_host}'),
    (r'is not in the .* registry',
     "custom_imports = dict(imports=['fpt_plugin']) in the config"),
    (r'must come from one distribution|fpt_plugin needs (?:mm\w+)',
     'see the message'),
    (r"No module named '(mmengine|mmcv|mmdet|mmseg)\b", '{install_host}'),
    (r"No module named 'fpt_plugin'", INSTALL_SELF),
    (r"No module named 'torch'",
     f'pip install {TORCH}, then build mmcv: tools/environment.sh does both'),
    (r"No module named 'cv2'", 'pip install opencv-python-headless'),
    (r"No module named '(\w+)", 'pip install {0}'),
)
# Distributions whose names differ from those of their modules.
_PACKAGES = {'PIL': 'pillow', 'yaml': 'pyyaml', 'sklearn': 'scikit-learn'}


def cure_for(facts: Facts, step: str, error: str) -> str:
    """Return how to fix an error, by its message; else how to see more of it."""
    if step == 'torch' and 'No module named' not in error:
        return f'pip install --force-reinstall {TORCH}, then rebuild mmcv'
    for pattern, cure in CURES:
        match = re.search(pattern, error)
        if match is None:
            continue
        name = match[1] if match.re.groups else ''
        host = name if name in LIBRARIES else ''
        return cure.format(
            _PACKAGES.get(name, name),
            rebuild=rebuild(facts),
            install_mmcv=_install(facts, 'mmcv'),
            install_mmengine=_install(facts, 'mmengine'),
            install_host=host and _install(facts, host))
    module = step.partition(':')[0]
    return f"unknown; python -X faulthandler -c 'import {module}' may show more"


def rebuild(facts: Facts) -> str:
    """Return the commands that compile mmcv against the installed torch."""
    given = ' '.join(facts.of('mmcv')) or facts.requirement('mmcv')
    return (f'pip uninstall -y {re.split("[=>]", given)[0]}; '
            'pip install ninja psutil; MMCV_WITH_OPS=1 pip install '
            f'--no-build-isolation --no-cache-dir {_quoted(facts, "mmcv")}')


def _install(facts: Facts, host: str) -> str:
    variable = 'MMCV_WITH_OPS=1 ' if host == 'mmcv' else ''
    # Their setup.py imports torch, which is missing in an isolated build.
    option = '--no-build-isolation ' if host == 'mmcv' or \
        facts.requirement(host).startswith('onedl-mmdet') else ''
    return f'{variable}pip install {option}{_quoted(facts, host)}'


def _quoted(facts: Facts, host: str) -> str:
    requirement = facts.requirement(host)
    return requirement if '>' not in requirement else f"'{requirement}'"
