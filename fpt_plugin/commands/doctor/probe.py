"""Try everything that may fail or crash, step by step; the doctor runs this script.

    python probe.py OUT HOST... -- STEP...

Each step writes two JSON lines to OUT: one when it starts, so that a crash can be
assigned to it, and one with its result. The given STEPs are done or have crashed
already. Outside the steps only the standard library is imported.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile

BASES = {
    'mmdet': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'mmseg': 'mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py',
}
OWN_BASES = {
    'mmdet': 'fpt_plugin::fpt/faster-rcnn_r50_fpt_1x_coco.py',
    'mmseg': 'fpt_plugin::fpt/sem-fpn_r50_fpt_4xb2-80k_cityscapes-512x1024.py',
}


def steps(hosts: list[str]) -> dict:
    """Return all steps in order: function, arguments, and steps it depends on."""
    found = {
        'torch': (try_torch, (), ()),
        'numpy': (try_import, ('numpy', ), ()),
        'cv2': (try_import, ('cv2', ), ('numpy', )),
        'mmengine': (try_import, ('mmengine', ), ('torch', )),
        'mmcv': (try_import, ('mmcv', ), ('mmengine', 'cv2')),
        'mmcv.ops': (try_ops, (), ('mmcv', )),
        'fpt_plugin': (try_plugin, (), ('mmcv', )),
        'resume': (try_resume, (), ('fpt_plugin', )),
    }
    for host in hosts:
        imported = f'{host}.models'
        found[host] = (try_import, (host, ), ('mmcv', ))
        found[imported] = (try_host, (host, ), (host, 'mmcv.ops'))
        found[f'{host}: names'] = (try_names, (host, ), (imported,
                                                         'fpt_plugin'))
        found[f'{host}:: bases'] = (try_base, (BASES[host], ),
                                    (host, 'fpt_plugin'))
        found[f'{host}: forward'] = (try_forward, (host, ),
                                     (f'{host}: names', ))
    if hosts:
        found['fpt_plugin:: bases'] = (try_base, (OWN_BASES[hosts[0]], ),
                                       (f'{hosts[0]}:: bases', ))
    return found


# ------------------------------------------------------------------------- steps


def try_import(name: str) -> dict:
    """Import a module, and return its version and path."""
    module = __import__(name)
    return dict(
        version=getattr(module, '__version__', None),
        path=getattr(module, '__file__', None))


def try_torch() -> dict:
    """Import torch, and list its devices."""
    import torch
    torch.ones(2).sum()
    available = torch.cuda.is_available()
    return dict(
        version=str(torch.__version__),
        built_for=torch.version.cuda,
        devices=[
            torch.cuda.get_device_name(i)
            for i in range(torch.cuda.device_count() if available else 0)
        ])


def try_ops() -> dict:
    """Run an operator of mmcv on all devices that models use."""
    import torch
    from mmcv.ops import get_compiling_cuda_version, nms
    boxes = torch.tensor([[0., 0., 4., 4.], [0., 0., 4., 5.], [8., 8., 9., 9.]])
    scores = torch.tensor([.9, .8, .7])
    devices = ['cpu'] + ['cuda'] * torch.cuda.is_available()
    for device in devices:
        kept = nms(boxes.to(device), scores.to(device), 0.5)[1]
        if kept.tolist() != [0, 2]:
            raise RuntimeError(f'mmcv.ops.nms on {device} keeps '
                               f'{kept.tolist()} instead of [0, 2]')
    return dict(cuda=get_compiling_cuda_version(), devices=devices)


def try_plugin() -> dict:
    """Import the package and check the versions of the libraries."""
    import fpt_plugin
    from fpt_plugin.openmmlab.versions import check_versions
    check_versions()
    return dict(
        version=fpt_plugin.__version__,
        path=os.path.dirname(os.path.realpath(fpt_plugin.__file__)))


def try_resume() -> dict:
    """Read a log of mmengine's training with torch's safe loading."""
    import torch
    from mmengine.logging import MessageHub

    import fpt_plugin  # noqa: F401  (applies the fixes)
    hub = MessageHub('doctor')
    hub.update_scalar('loss', 0.5)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'epoch_1.pth')
        torch.save(dict(message_hub=hub.state_dict()), path)
        loaded = torch.load(path, weights_only=True)
    found = loaded['message_hub']['log_scalars']['loss'].mean()
    if found != 0.5:
        raise RuntimeError(f'a logged 0.5 is read as {found}')
    return {}


def try_host(host: str) -> dict:
    """Import all models of a library, and its modules for inference."""
    __import__(f'{host}.models')
    __import__(f'{host}.apis')
    return {}


def try_names(host: str) -> dict:
    """Look up the package's modules in the library's scope, as configs do."""
    from mmengine.registry import (
        DATASETS,
        HOOKS,
        METRICS,
        MODELS,
        OPTIM_WRAPPER_CONSTRUCTORS,
        TRANSFORMS,
    )

    import fpt_plugin
    kinds = (DATASETS, HOOKS, METRICS, OPTIM_WRAPPER_CONSTRUCTORS, TRANSFORMS)
    names = [name for name in fpt_plugin.__all__ if name != '__version__']
    for name in names:
        kind = next((kind for kind in kinds if name in kind.module_dict), MODELS)
        with kind.switch_scope_and_registry(host) as registry:
            found = registry.get(name)
        full_name = f'the {host}::{kind.name} registry'
        if found is None:
            raise KeyError(f'{name} is not in {full_name}')
        if found is not getattr(fpt_plugin, name):
            raise KeyError(f'{name} of {full_name} is '
                           f'{found.__module__}.{found.__qualname__}')
    return dict(names=names)


def try_base(base: str) -> dict:
    """Read a shipped config by its name as a base."""
    from mmengine.config import Config

    import fpt_plugin  # noqa: F401  (applies the fixes)
    cfg = Config.fromstring(f'_base_ = {base!r}', '.py')
    return dict(base=base, model=cfg.model.type)


def try_forward(host: str) -> dict:
    """Run a small FPT around the library's FPN, and a lambda layer."""
    import torch
    from mmengine.registry import MODELS, DefaultScope

    import fpt_plugin
    with DefaultScope.overwrite_default_scope(host):
        neck = MODELS.build(
            dict(
                type='FPT',
                in_channels=[8, 16, 32],
                out_channels=16,
                num_outs=3)).eval()
    maps = [torch.rand(1, 8 << i, 12 >> i, 16 >> i) for i in range(3)]
    with torch.no_grad():
        plain, found = neck.pyramid(maps), neck(maps)
        if not all(map(torch.equal, plain, found)):
            raise RuntimeError('a new FPT changes the maps of its pyramid')
        torch.nn.init.ones_(neck.fusions[0].out_conv.weight)
        changed = neck(maps)[0]
        if torch.equal(changed, found[0]) or not changed.isfinite().all():
            raise RuntimeError('a changed FPT returns the same values, or values '
                               'that are not finite')
        layer = fpt_plugin.LambdaLayer(16).eval()
        if not layer(maps[1]).isfinite().all():
            raise RuntimeError('a lambda layer returns values that are not finite')
    return {}


# ------------------------------------------------------------------------ script


def run(out: str, hosts: list[str], done: list[str]) -> None:
    """Try the steps that are not done, and write a line for each."""
    with open(out, encoding='utf-8') as file:
        results = [json.loads(line) for line in file]
    failed = set(done) - {r['step'] for r in results if r.get('ok')}
    with open(out, 'a', encoding='utf-8') as file:

        def write(**result) -> None:
            file.write(json.dumps(result) + '\n')
            file.flush()

        for name, (function, arguments, needs) in steps(hosts).items():
            if name in done:
                continue
            missing = [need for need in needs if need in failed]
            if missing:
                failed.add(name)
                write(step=name, ok=None, because=missing[0])
                continue
            write(step=name, begins=True)
            try:
                write(step=name, ok=True, detail=function(*arguments))
            except KeyboardInterrupt:
                raise
            # A broken installation may raise anything, even SystemExit.
            except BaseException as error:
                failed.add(name)
                write(
                    step=name,
                    ok=False,
                    error=f'{type(error).__name__}: {error}'.strip())


if __name__ == '__main__':
    # Remove this script's folder: its other files must not be top-level modules.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [p for p in sys.path if os.path.abspath(p) != here]
    end = sys.argv.index('--')
    run(sys.argv[1], sys.argv[2:end], sys.argv[end + 1:])
