"""The doctor's diagnosis of real environments, and of made-up facts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from importlib.metadata import version
from pathlib import Path

import pytest
from helpers.shipped_configs import STACK

from fpt_plugin.commands.doctor import command as doctor
from fpt_plugin.commands.doctor import probe as doctor_probe
from fpt_plugin.commands.doctor.checks import (
    FAIL,
    OK,
    SKIP,
    WARN,
    Facts,
    Result,
    cure_for,
    diagnose,
    release,
)
from fpt_plugin.openmmlab.pins import LIBRARIES, REQUIREMENTS

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'doctor.py'

# ------------------------------------------------------------ real environments


def call(*flags, python=sys.executable, tool=TOOL, path=(ROOT, )):
    """Run the script as users do."""
    environment = dict(
        os.environ, PYTHONPATH=os.pathsep.join(map(str, path)))
    environment.pop('PYTHONHOME', None)
    return subprocess.run([str(python), str(tool), *flags], capture_output=True,
                          text=True, timeout=600, env=environment)


def findings(result):
    """Return the JSON, the worst statuses by name, and the fixes of failures."""
    read = json.loads(result.stdout)
    statuses, cures = {}, {}
    for finding in read['findings']:
        name = finding['name']
        if statuses.get(name) != FAIL:
            statuses[name] = finding['status']
        if finding['status'] == FAIL:
            cures.setdefault(name, finding['cure'])
    return read, statuses, cures


@pytest.fixture
def environment(tmp_path):
    """Return a function that makes a copy of this environment without packages."""

    def make(*without):
        venv.create(tmp_path / 'venv', symlinks=True)
        python = tmp_path / 'venv' / 'bin' / 'python'
        packages, = (tmp_path / 'venv').glob('lib/python*/site-packages')
        for entry in Path(sysconfig.get_path('purelib')).iterdir():
            if not entry.name.lower().startswith((*without, '__editable__')):
                (packages / entry.name).symlink_to(entry)
        return python, packages

    return make


def test_a_good_environment():
    result = call('--json')
    read, statuses, _ = findings(result)
    assert result.returncode == 0, result.stdout
    assert read['ok'] and read['distribution'] == STACK
    assert FAIL not in statuses.values() and SKIP not in statuses.values()
    for name in ('mmcv.ops', 'fpt_plugin', 'resume', 'mmdet: names',
                 'mmseg: names', 'mmdet:: bases', 'mmseg:: bases',
                 'mmdet: forward', 'mmseg: forward'):
        assert statuses[name] == OK, read
    names = read['results']['mmseg: names']['detail']['names']
    assert {'FPT', 'LambdaResNet', 'LambdaLayer'} <= set(names)
    assert read['results']['torch']['detail']['version'].startswith(
        version('torch').partition('+')[0])


@pytest.mark.skipif(STACK != 'stock', reason='the fork does not need it')
def test_setuptools_without_pkg_resources(environment):
    python, packages = environment('setuptools', 'pkg_resources',
                                   '_distutils_hack', 'distutils-precedence')
    metadata = packages / 'setuptools-82.0.0.dist-info' / 'METADATA'
    metadata.parent.mkdir()
    metadata.write_text('Metadata-Version: 2.1\nName: setuptools\n'
                        'Version: 82.0.0\n')
    result = call('--json', '--hosts', 'mmdet', python=python)
    read, statuses, cures = findings(result)
    assert result.returncode == 1 and not read['ok']
    assert cures == dict.fromkeys(
        ('setuptools', 'mmdet:: bases'), "pip install 'setuptools<81'")
    assert 'pkg_resources' in read['results']['mmdet:: bases']['error']
    assert statuses['mmdet: forward'] == OK


def test_mmcv_without_operators_and_no_mmdet(environment):
    python, packages = environment('mmdet', 'onedl_mmdet')
    shadow = packages / 'mmcv'
    real = shadow.resolve()
    shadow.unlink()
    shadow.mkdir()
    for entry in real.iterdir():
        if not entry.name.startswith('_ext'):
            (shadow / entry.name).symlink_to(entry)
    result = call('--json', python=python)
    read, statuses, cures = findings(result)
    assert result.returncode == 1
    assert read['results']['mmcv']['ok']
    assert "No module named 'mmcv._ext'" in \
        read['results']['mmcv.ops']['error']
    assert '--no-build-isolation' in cures['mmcv.ops']
    assert 'MMCV_WITH_OPS=1' in cures['mmcv.ops']
    assert REQUIREMENTS[STACK]['mmdet'] in cures['mmdet']
    assert '--hosts mmseg' in cures['mmdet']
    assert statuses['mmdet: forward'] == statuses['mmseg: names'] == SKIP
    assert statuses['resume'] == OK


def test_without_torch_and_rich(environment):
    python, _ = environment('torch', 'rich')
    result = call(python=python)
    assert result.returncode == 1 and not result.stderr
    lines = result.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith('FAIL torch'))
    assert "No module named 'torch'" in lines[at]
    assert 'fix: pip install torch==' in lines[at + 1]
    assert any(line.startswith('SKIP ') and 'mmdet: forward' in line
               for line in lines)
    assert lines[-1].startswith('there are problems: 1 failures')


@pytest.mark.parametrize('installed', [False, True])
def test_an_empty_environment(tmp_path, installed):
    """Run the doctor from a checkout, and from an installed wheel."""
    venv.create(tmp_path / 'venv', symlinks=True)
    tool, path = TOOL, [ROOT]
    if installed:
        packages, = (tmp_path / 'venv').glob('lib/python*/site-packages')
        package = packages / 'fpt_plugin'
        skip = shutil.ignore_patterns('__pycache__', '.mim')
        shutil.copytree(ROOT / 'fpt_plugin', package, ignore=skip)
        shutil.copytree(ROOT / 'tools', package / '.mim' / 'tools', ignore=skip)
        tool, path = package / '.mim' / 'tools' / 'doctor.py', []
    python = tmp_path / 'venv' / 'bin' / 'python'
    result = call('--json', python=python, tool=tool, path=path)
    read, _, cures = findings(result)
    assert result.returncode == 1 and read['distribution'] == 'none'
    assert {'distribution', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'torch',
            'numpy'} <= set(cures)
    assert all(cures.values())


# ------------------------------------------------------------------------- facts

STOCK = {
    'mmengine': '0.10.7',
    'mmcv': '2.1.0',
    'mmdet': '3.3.0',
    'mmsegmentation': '1.2.2',
    'setuptools': '80.10.2',
    'ftfy': '6.3.1',
    'regex': '2025.1',
    'opencv-python': '4.11.0.86',
}
FORK = {
    'onedl-mmengine': '0.10.9',
    'onedl-mmcv': '2.3.6',
    'onedl-mmdetection': '3.5.1',
    'onedl-mmsegmentation': '1.4.2',
    'setuptools': '84.0.0',
    'ftfy': '6.3.1',
    'regex': '2025.1',
}


def judge(installed=STOCK, results=(), python=(3, 11, 7), **kwargs):
    """Return the findings that are not OK, by name."""
    facts = Facts(python, dict(installed), dict(results), **kwargs)
    return {f.name: f for f in diagnose(facts) if f.status != OK}


def failed(error):
    return Result(False, error=error)


@pytest.mark.parametrize('installed, stack', [(STOCK, 'stock'), (FORK, 'onedl')])
def test_supported_stacks(installed, stack):
    assert not judge(installed)
    assert Facts((3, 11), installed, {}).stack == stack


@pytest.mark.parametrize('changes, name, status, words', [
    ({'setuptools': '82.0.0'}, 'setuptools', FAIL, "'setuptools<81'"),
    ({'setuptools': None}, 'setuptools', FAIL, "'setuptools<81'"),
    ({'setuptools': '81.0.0'}, 'setuptools', WARN, "'setuptools<81'"),
    ({'ftfy': None}, 'mmseg', FAIL, 'pip install ftfy'),
    ({'ftfy': None, 'regex': None}, 'mmseg', FAIL, 'pip install ftfy regex'),
    ({'mmdet': None}, 'mmdet', FAIL, 'pip install mmdet==3.3.0'),
    ({'mmcv': None}, 'mmcv', FAIL, 'MMCV_WITH_OPS=1'),
    ({'mmdet': '2.28.2'}, 'mmdet', FAIL, 'mmdet==3.3.0'),
    ({'mmcv': '1.7.1'}, 'mmcv', FAIL, 'mmcv==2.1.0'),
    ({'mmengine': '0.6.0'}, 'mmengine', FAIL, 'mmengine==0.10.7'),
    ({'onedl-mmcv': '2.3.6'}, 'mmcv', FAIL, 'pip uninstall -y mmcv onedl-mmcv'),
    ({'mmcv-lite': '2.1.0'}, 'mmcv', FAIL, 'pip uninstall -y mmcv mmcv-lite'),
    ({'mmdet': None, 'onedl-mmdetection': '3.5.1'}, 'distribution', WARN,
     'uninstall'),
    ({'opencv-python-headless': '5.0'}, 'opencv', WARN,
     'pip uninstall -y opencv-python opencv-python-headless'),
])
def test_versions(changes, name, status, words):
    installed = {**STOCK, **changes}
    found = judge({k: v for k, v in installed.items() if v is not None})
    assert found[name].status == status and words in found[name].cure
    # Mixed stacks have a second finding, on the distribution.
    assert set(found) <= {name, 'distribution'}


def test_versions_of_python_and_releases():
    assert judge(python=(3, 8, 1))['python'].status == FAIL
    assert judge(python=(3, 13, 0))['python'].status == WARN
    assert release('2.1.0rc1') == (2, 1, 0)
    assert release('2.13.0+cpu') == (2, 13, 0)
    assert release('not available') == release('') == ()


def test_newer_versions_of_mmengine_may_not_need_pkg_resources():
    newer = {**STOCK, 'setuptools': '82.0.0', 'mmengine': '0.11.0'}
    assert not judge(newer)
    error = "ModuleNotFoundError: No module named 'pkg_resources'"
    assert 'setuptools<81' in judge(
        newer, {'mmdet:: bases': failed(error)})['mmdet:: bases'].cure


def test_libraries_that_are_not_needed():
    installed = {k: v for k, v in STOCK.items() if 'seg' not in k}
    assert judge(installed)['mmseg'].status == FAIL
    assert not judge(installed, wanted=('mmdet', ))
    # A source checkout works without metadata.
    works = Result(True, dict(version='1.2.2', path='mmseg/__init__.py'))
    assert not judge(installed, {'mmseg': works})


@pytest.mark.parametrize('step, error, words', [
    ('cv2', 'ImportError: libGL.so.1: cannot open shared object file: No such '
     'file or directory', 'opencv-python-headless'),
    ('cv2', 'ImportError: libgthread-2.0.so.0: cannot open shared object file',
     'libglib2.0-0'),
    ('cv2', 'ImportError: libtbb.so.12: cannot open shared object file',
     'install libtbb.so.12'),
    ('cv2', "ModuleNotFoundError: No module named 'cv2'",
     'pip install opencv-python-headless'),
    ('mmcv.ops', "ModuleNotFoundError: No module named 'mmcv._ext'",
     'pip uninstall -y mmcv; '),
    ('mmcv.ops', "ModuleNotFoundError: No module named 'mmcv.ops'",
     'pip uninstall -y mmcv; '),
    ('fpt_plugin', "ModuleNotFoundError: No module named 'mmcv.cnn'",
     'mmcv==2.1.0'),
    ('mmcv.ops', 'ImportError: /a/mmcv/_ext.so: undefined symbol: _ZN3c10',
     '--no-cache-dir mmcv==2.1.0'),
    ('mmcv.ops', 'ImportError: libcudart.so.11.0: cannot open shared object',
     '--no-cache-dir mmcv==2.1.0'),
    ('mmcv.ops', 'RuntimeError: nms is not compiled with GPU support',
     'MMCV_WITH_OPS=1'),
    ('mmdet', 'AssertionError: MMCV==2.2.0 is used but incompatible. Please '
     'install mmcv>=2.0.0rc4, <2.2.0.', 'mmcv==2.1.0'),
    ('mmdet', 'AssertionError: MMEngine==1.0.0 is used but incompatible. ',
     'mmengine==0.10.7'),
    ('mmseg.models', "ModuleNotFoundError: No module named 'ftfy'",
     'pip install ftfy regex'),
    ('mmdet:: bases', "ModuleNotFoundError: No module named 'pkg_resources'",
     'setuptools<81'),
    ('mmdet:: bases', "FileNotFoundError: No such file or directory: "
     "'/a/mmdet/.mim/model-index.yml'", 'mmdet==3.3.0'),
    ('resume', 'UnpicklingError: Weights only load failed. ...',
     'import fpt_plugin'),
    ('fpt_plugin', "ModuleNotFoundError: No module named 'fpt_plugin'",
     'pip install --no-build-isolation -e .'),
    ('mmdet: names', "KeyError: 'FPT is not in the mmdet::model registry'",
     'custom_imports'),
    ('mmdet.models', "ModuleNotFoundError: No module named 'PIL'",
     'pip install pillow'),
    ('mmdet.models', "ModuleNotFoundError: No module named 'terminaltables'",
     'pip install terminaltables'),
    ('numpy', 'ImportError: numpy.core.multiarray failed to import',
     "'numpy<2'"),
    ('torch', 'OSError: libcudnn.so.9: cannot open shared object file',
     '--force-reinstall torch'),
    ('mmcv', 'RuntimeError: never seen', "import mmcv"),
])
def test_fixes_of_errors(step, error, words):
    finding = judge(results={step: failed(error)})[step]
    assert finding.status == FAIL and words in finding.cure
    assert '{' not in finding.cure


def test_fixes_fit_the_installed_distribution():
    lite = {'mmcv-lite' if name == 'mmcv' else name: given
            for name, given in STOCK.items()}
    for installed, old, new in ((FORK, 'onedl-mmcv', "'onedl-mmcv>=2.3.6'"),
                                (lite, 'mmcv-lite', 'mmcv==2.1.0')):
        cure = cure_for(Facts((3, 11), installed, {}), 'mmcv.ops',
                        "No module named 'mmcv._ext'")
        assert f'uninstall -y {old};' in cure and cure.endswith(new)


def test_cuda():
    def torch(built_for, *devices, version='2.6.0'):
        return Result(True, dict(
            version=version, built_for=built_for, devices=list(devices)))

    assert not judge(results={'torch': torch(None)})
    assert not judge(results={'torch': torch('12.4', 'H100')})
    assert judge(results={'torch': torch('12.4')})['cuda'].status == WARN
    assert judge(
        results={'torch': torch(None, version='2.0.1')})['torch'].status == FAIL
    for cuda, bad in (('12.1', False), ('11.8', True), ('not available', False)):
        ops = Result(True, dict(cuda=cuda, devices=['cpu', 'cuda']))
        found = judge(results={'torch': torch('12.4', 'H100'), 'mmcv.ops': ops})
        assert ('mmcv.ops' in found) == bad


def test_checkouts():
    step = 'fpt_plugin:: bases'
    never_installed = ("FileNotFoundError: [Errno 2] No such file or directory: "
                       "'/a/fpt_plugin/.mim/model-index.yml'")
    assert judge(results={step: failed(never_installed)})[step].status == WARN
    assert judge(results={step: failed('KeyError: model')})[step].status == FAIL
    found = {'fpt_plugin': Result(True, dict(version='0.1.0', path='/a/fpt_plugin'))}
    other = judge(results=found, package='/b/fpt_plugin')
    assert other['fpt_plugin'].status == WARN
    assert not judge(results=found, package='/a/fpt_plugin')


def test_the_extras_install_the_recommended_versions():
    extras = metadata.metadata('fpt-plugin').get_all('Requires-Dist')
    for stack, requirements in REQUIREMENTS.items():
        assert requirements.keys() == LIBRARIES.keys()
        for requirement in requirements.values():
            assert f'{requirement}; extra == "{stack}"' in extras
    assert 'setuptools<81; extra == "stock"' in extras


# ----------------------------------------------------------------------- crashes


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """Return a function that replaces the steps of the probe."""

    def make(**steps):
        text = Path(doctor_probe.__file__).read_text()
        body = ''.join(f'    def {name}():\n        {code}\n'
                       for name, code in steps.items())
        table = ', '.join(f'{name}=({name}, (), ())' for name in steps)
        script = tmp_path / 'probe.py'
        script.write_text(
            text.replace('\nif __name__', '\ndef steps(hosts):\n    import os, '
                         f'time\n{body}    return dict({table})\n\n\nif __name__'))
        monkeypatch.setattr(doctor, 'PROBE', script)

    return make


def test_steps_that_crash_do_not_stop_the_others(probe):
    probe(
        a='return dict(version="1")',
        b='os.kill(os.getpid(), 11)',
        c='raise SystemExit(3)',
        d='os._exit(7)',
        e='return {}')
    results = doctor.try_steps(['mmdet'], 60)
    assert {k: r.ok for k, r in results.items()} == dict(
        a=True, b=False, c=False, d=False, e=True)
    assert 'SIGSEGV' in results['b'].error
    assert results['c'].error == 'SystemExit: 3'
    assert 'code 7' in results['d'].error
    assert 'faulthandler' in judge(results={'b': results['b']})['b'].cure


def test_a_step_that_hangs_and_a_probe_that_does_not_run(probe, monkeypatch, tmp_path):
    probe(a='return {}', b='time.sleep(60)')
    results = doctor.try_steps([], 3)
    assert results['a'].ok and 'TimeoutExpired' in results['b'].error
    monkeypatch.setattr(doctor, 'PROBE', tmp_path / 'none.py')
    results = doctor.try_steps(['mmdet'], 60)
    assert list(results) == ['probe'] and not results['probe'].ok
    assert 'code 2' in results['probe'].error


def test_steps_that_depend_on_a_failed_step(tmp_path):
    out = tmp_path / 'out'
    out.touch()
    doctor_probe.run(str(out), [], [
        'torch', 'numpy', 'cv2', 'mmengine', 'mmcv', 'mmcv.ops'
    ])
    read = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r['step'], r['ok'], r['because']) for r in read] == [
        ('fpt_plugin', None, 'mmcv'), ('resume', None, 'fpt_plugin')
    ]


# ----------------------------------------------------------------------- output


def test_lines(capsys, monkeypatch):
    facts = Facts((3, 11, 0), {**STOCK, 'setuptools': '82.0.0'}, {
        'cv2': failed('ImportError: libGL.so.1: cannot open shared object'),
        'mmcv': Result(None, because='cv2')
    })
    diagnosis = doctor.Diagnosis(facts, tuple(diagnose(facts)))
    doctor.show(diagnosis)
    with_rich = capsys.readouterr().out
    monkeypatch.setitem(sys.modules, 'rich.console', None)
    doctor.show(diagnosis)
    assert capsys.readouterr().out == with_rich
    assert "fix: pip install 'setuptools<81'" in with_rich
    assert 'FAIL cv2: ImportError: libGL.so.1' in with_rich
    assert with_rich.endswith('there are problems: 2 failures, 0 warnings\n')
    assert json.loads(json.dumps(diagnosis.to_dict()))['ok'] is False
