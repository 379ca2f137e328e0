"""Training and testing from a config, as the hosts' own tools do.

One command serves both hosts: the config's ``default_scope`` says whose.
"""

from __future__ import annotations

import argparse
import os
import warnings
from copy import deepcopy
from pathlib import Path

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import Runner

from .data_checks import check_data, unscoped_type
from .device_checks import check_amp, check_sync_bn
from .host_models import HOSTS, scope_of
from .resume import check_checkpoint, check_pretrained, newest_checkpoint
from .running import run_test, run_training

# Metrics of mmseg that write label maps.
WRITERS = ('IoUMetric', 'CityscapesMetric')


def _parser(description: str) -> argparse.ArgumentParser:
    """The flags that both tools of both hosts share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file path')
    parser.add_argument(
        '--work-dir',
        help='folder of logs, checkpoints and metrics (default: the '
        "config's work_dir, else work_dirs/ and the config's name)")
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings that override the config, as key=value; lists as '
        'key="[a,b]" or key=a,b, nested ones as key="[(a,b),(c,d)]", without '
        'white space')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher')
    # torch.distributed.launch passes the second spelling since torch 2.0.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def train_parser() -> argparse.ArgumentParser:
    """The flags of mmdet's and mmseg's tools/train.py."""
    parser = _parser('Train a detector or a segmentor')
    parser.add_argument(
        '--amp', action='store_true', help='train in mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the batch size')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='continue from this checkpoint; without a path from the newest '
        'whole one in the work folder')
    return parser


def test_parser() -> argparse.ArgumentParser:
    """The flags of mmdet's and mmseg's tools/test.py."""
    parser = _parser('Test (and evaluate) a detector or a segmentor')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out',
        help='detection: pickle file of the predictions; segmentation: folder '
        'of the predicted label maps')
    parser.add_argument(
        '--show', action='store_true', help='show the predictions')
    parser.add_argument(
        '--show-dir',
        help='folder for painted images; mmdet puts it below its own folder '
        'of the run')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds between images')
    parser.add_argument(
        '--tta', action='store_true', help='test-time augmentation')
    return parser


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the flags that both tools share.

    Raises:
        ValueError: The config names no ``default_scope`` of a host.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = f'./work_dirs/{Path(args.config).stem}'
    scope = cfg.default_scope = scope_of(cfg)
    if scope not in HOSTS:
        raise ValueError('the config must set default_scope to one of '
                         f'{HOSTS}, got {scope!r} in {args.config}')
    if scope == 'mmdet':
        from mmdet.utils import setup_cache_size_limit_of_dynamo
        setup_cache_size_limit_of_dynamo()
    return cfg


def train_config(args: argparse.Namespace) -> Config:
    """The config to train with under the flags of :func:`train_parser`.

    Raises:
        ValueError: A flag does not fit the config.
    """
    cfg = load_config(args)
    if args.amp:
        wrapper = cfg.optim_wrapper.get('type', 'OptimWrapper')
        if wrapper not in ('OptimWrapper', 'AmpOptimWrapper', OptimWrapper,
                           AmpOptimWrapper):
            raise ValueError('--amp needs a config whose optim_wrapper is of '
                             f'type OptimWrapper, got {wrapper!r}')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise ValueError('--auto-scale-lr needs a config with '
                             'auto_scale_lr=dict(base_batch_size=...), got '
                             f'auto_scale_lr={cfg.get("auto_scale_lr")}')
        cfg.auto_scale_lr.enable = True
    if args.resume == 'auto' or (args.resume is None and cfg.get('resume')
                                 and cfg.get('load_from') is None):
        _resume_newest(cfg)
    elif args.resume is not None:
        cfg.resume, cfg.load_from = True, args.resume
    return cfg


def _resume_newest(cfg: Config) -> None:
    """Continue from the newest whole checkpoint.

    A run that died before its first checkpoint begins again: it must not lose
    the weights that the config starts from, which a resumed run would.
    """
    checkpoint = newest_checkpoint(cfg.work_dir, _checkpoint_hook(cfg))
    if checkpoint is None:
        warnings.warn(
            f'--resume found no checkpoint in {cfg.work_dir}: the run begins '
            f'anew, with load_from={cfg.get("load_from")!r}',
            stacklevel=2)
        cfg.resume = False
        return
    cfg.resume, cfg.load_from = True, checkpoint


def _checkpoint_hook(cfg: Config) -> dict:
    """The settings of the hook that saves checkpoints; empty without one."""
    return (cfg.get('default_hooks') or {}).get('checkpoint') or {}


def test_config(args: argparse.Namespace) -> Config:
    """The config to test with under the flags of :func:`test_parser`.

    Raises:
        ValueError: A flag does not fit the config.
    """
    cfg = load_config(args)
    cfg.load_from = args.checkpoint
    detection = cfg.default_scope == 'mmdet'
    if args.show or args.show_dir:
        _draw(cfg, args, detection)
    if args.tta:
        if detection:
            _default_detection_tta(cfg)
        missing = [k for k in ('tta_model', 'tta_pipeline') if k not in cfg]
        if missing:
            raise ValueError(f'--tta needs {" and ".join(missing)} in the '
                             f'config, got none in {args.config}')
        cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    if args.out is not None and not detection:
        _keep_label_maps(cfg.test_evaluator, args.out)
    if args.out is not None and detection \
            and not args.out.endswith(('.pkl', '.pickle')):
        raise ValueError('--out must name a .pkl or .pickle file for a '
                         f'detector, got {args.out!r}')
    return cfg


def _keep_label_maps(evaluator: dict | list, folder: str) -> None:
    """Let the metric write what was predicted; of several, the first one that can.

    Raises:
        ValueError: There are several, and none of them is known to.
    """
    metrics = evaluator if isinstance(evaluator, list) else [evaluator]
    kinds = [unscoped_type(metric) for metric in metrics]
    if len(metrics) > 1:
        metrics = [m for m, kind in zip(metrics, kinds) if kind in WRITERS]
    if not metrics:
        raise ValueError(f'--out of a segmentor needs one of {WRITERS} in its '
                         f'test_evaluator, got {kinds}')
    metrics[0].update(output_dir=folder, keep_results=True)


def _draw(cfg: Config, args: argparse.Namespace, detection: bool) -> None:
    """Switch the host's visualization hook on."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ValueError('--show and --show-dir need a visualization hook in '
                         'default_hooks, got '
                         f'{sorted(cfg.get("default_hooks", {}))}')
    hook.draw = True
    if args.show:
        hook.show = True
        hook.wait_time = args.wait_time
    if args.show_dir and detection:
        hook.test_out_dir = args.show_dir
    elif args.show_dir:
        cfg.visualizer.save_dir = args.show_dir


def _default_detection_tta(cfg: Config) -> None:
    """Mmdet's default: the image and its mirror image, merged by NMS.

    Raises:
        ValueError: The detector has masks, which mmdet does not merge.
    """
    if 'tta_model' not in cfg:
        warnings.warn(
            'the config has no tta_model: DetTTAModel with NMS at 0.5 is used',
            stacklevel=2)
        cfg.tta_model = dict(
            type='DetTTAModel',
            tta_cfg=dict(
                nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
    masks = (cfg.model.get('roi_head') or {}).get('mask_head') is not None
    if masks and cfg.tta_model.type in ('DetTTAModel', 'mmdet.DetTTAModel'):
        raise ValueError('--tta with a DetTTAModel merges boxes alone, got a '
                         'detector with a mask_head: mmdet does not merge '
                         'masks')
    if 'tta_pipeline' not in cfg:
        warnings.warn(
            'the config has no tta_pipeline: mirror images are added',
            stacklevel=2)
        dataset = cfg.test_dataloader.dataset
        while 'dataset' in dataset:
            dataset = dataset.dataset
        pipeline = deepcopy(dataset.pipeline)
        pipeline[-1] = dict(
            type='TestTimeAug',
            transforms=[[
                dict(type='RandomFlip', prob=1.),
                dict(type='RandomFlip', prob=0.)
            ],
                        [
                            dict(
                                type='PackDetInputs',
                                meta_keys=('img_id', 'img_path', 'ori_shape',
                                           'img_shape', 'scale_factor', 'flip',
                                           'flip_direction'))
                        ]])
        cfg.tta_pipeline = pipeline


def train(args: argparse.Namespace) -> Runner:
    """What tools/train.py does.

    Raises:
        OSError: Data that the config names are not there, or the disk is full.
        ValueError: A flag does not fit the config or the device, or the
            checkpoint to begin with is damaged.
    """
    return run_training(prepare_training(args))


def prepare_training(args: argparse.Namespace) -> Config:
    """The config of a training, looked at before anything is built.

    Raises:
        OSError: The config or what it names is not there.
        ValueError: A flag does not fit the config or the device, or the
            checkpoint to begin with is damaged.
    """
    cfg = train_config(args)
    check_amp(cfg, args.amp)
    check_sync_bn(cfg)
    check_data(cfg, 'train', *(['val'] if cfg.get('val_cfg') else []))
    check_pretrained(cfg.model)
    found = args.resume == 'auto' and cfg.get('resume')  # looked at already
    if cfg.get('load_from') and not found:
        check_checkpoint(cfg.load_from)
    return cfg


def test(args: argparse.Namespace) -> dict[str, float]:
    """What tools/test.py does.

    Returns:
        The metrics by their names.

    Raises:
        OSError: Data that the config names, or the checkpoint, are not there.
        ValueError: A flag does not fit the config, or the checkpoint is
            damaged.
    """
    return run_test(prepare_test(args), args.out)


def prepare_test(args: argparse.Namespace) -> Config:
    """The config of a test, looked at before anything is built.

    Raises:
        OSError: The config, data that it names, or the checkpoint are not
            there.
        ValueError: A flag does not fit the config, or the checkpoint is
            damaged.
    """
    cfg = test_config(args)
    check_sync_bn(cfg)
    check_data(cfg, 'test')
    check_checkpoint(cfg.load_from)
    return cfg
