"""Test a detector or a segmentor from a config, as tools/test.py of mmdet and mmseg.

The config's ``default_scope`` selects the library. It is ``'mmengine'`` for models
that are pre-trained without labels.
"""

from __future__ import annotations

import argparse
import warnings
from copy import deepcopy

from mmengine.config import Config, ConfigDict

from ..engine.data_checks import check_data, unscoped_type
from ..engine.device_checks import check_sync_bn
from ..engine.resume import check_checkpoint
from ..engine.running import run_test
from ..openmmlab.pins import SCOPES
from .common import launch_config, launch_parser, reporting

# Keys of a config that a test needs.
PARTS = ('test_dataloader', 'test_evaluator', 'test_cfg')
# Metrics of mmseg that can write label maps.
WRITERS = ('IoUMetric', 'CityscapesMetric')


def parser() -> argparse.ArgumentParser:
    """Return a parser with the arguments of mmdet's and mmseg's tools/test.py."""
    parser = launch_parser('Test (and evaluate) a detector or a segmentor')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out',
        help='detection: pickle file for the predictions; segmentation: folder '
        'for the predicted label maps')
    parser.add_argument(
        '--show', action='store_true', help='show the predictions')
    parser.add_argument(
        '--show-dir',
        help='folder for images with drawn predictions; mmdet creates it inside '
        'the folder of the run')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds between images')
    parser.add_argument(
        '--tta', action='store_true', help='test-time augmentation')
    return parser


def test_config(args: argparse.Namespace) -> Config:
    """Return the config with the arguments of :func:`parser` applied.

    Raises:
        ValueError: An argument does not fit the config.
    """
    cfg = launch_config(args, (*SCOPES, 'mmengine'))
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
    if args.out is not None and cfg.default_scope == 'mmengine':
        raise ValueError('--out writes detections or label maps, and the model of '
                         f'{args.config} has none, got {args.out!r}')
    if args.out is not None and not detection:
        _keep_label_maps(cfg.test_evaluator, args.out)
    if args.out is not None and detection \
            and not args.out.endswith(('.pkl', '.pickle')):
        raise ValueError('--out must name a .pkl or .pickle file for a '
                         f'detector, got {args.out!r}')
    return cfg


def _keep_label_maps(evaluator: dict | list, folder: str) -> None:
    """Make a metric write the predictions: the only one, or the first of WRITERS.

    Raises:
        ValueError: There are several metrics and none is in WRITERS.
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
    """Switch on the library's visualization hook."""
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
    """Set mmdet's default: the image and its mirror image, merged by NMS.

    Raises:
        ValueError: The detector has masks, which mmdet does not merge.
    """
    if 'tta_model' not in cfg:
        warnings.warn(
            'the config has no tta_model: using DetTTAModel with NMS at 0.5',
            stacklevel=2)
        cfg.tta_model = dict(
            type='DetTTAModel',
            tta_cfg=dict(
                nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
    masks = (cfg.model.get('roi_head') or {}).get('mask_head') is not None
    if masks and cfg.tta_model.type in ('DetTTAModel', 'mmdet.DetTTAModel'):
        raise ValueError('--tta with a DetTTAModel merges only boxes, got a '
                         'detector with a mask_head: mmdet does not merge '
                         'masks')
    if 'tta_pipeline' not in cfg:
        warnings.warn(
            'the config has no tta_pipeline: adding mirror images',
            stacklevel=2)
        dataset = cfg.test_dataloader.dataset
        while 'dataset' in dataset:
            dataset = dataset.dataset
        pipeline = deepcopy(dataset.pipeline)
        pipeline[-1] = dict(
            type='TestTimeAug',
            transforms=[
                [dict(type='RandomFlip', prob=1.), dict(type='RandomFlip', prob=0.)],
                [dict(type='PackDetInputs',
                      meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                                 'scale_factor', 'flip', 'flip_direction'))],
            ])
        cfg.tta_pipeline = pipeline


def prepare_test(args: argparse.Namespace) -> Config:
    """Return the config of a test, checked before anything is built.

    Raises:
        OSError: The config, its data or the checkpoint do not exist.
        ValueError: An argument or the data do not fit the config, or the
            checkpoint is damaged.
    """
    cfg = test_config(args)
    missing = [key for key in PARTS if cfg.get(key) is None]
    if missing:
        raise ValueError(f'the config must have {", ".join(PARTS)} to be tested; '
                         f'{", ".join(missing)} is missing in {args.config}')
    check_sync_bn(cfg)
    check_data(cfg, 'test')
    check_checkpoint(cfg.load_from)
    return cfg


def main(args: argparse.Namespace) -> dict[str, float]:
    """Run the command; only errors of the preparation end without a traceback.

    Returns:
        The metrics by name.

    Raises:
        SystemExit: An argument, the config, its data or the checkpoint is wrong.
    """
    with reporting('test', OSError, SyntaxError, ValueError):
        cfg = prepare_test(args)
    return run_test(cfg, args.out)
