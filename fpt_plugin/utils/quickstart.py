"""From packages of the index to a trained detector of trees and its picture."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import cv2
import mmcv
import mmdet
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.runner import Runner, find_latest_checkpoint
from mmengine.visualization import Visualizer

from .files import replacing, write_json
from .mobilenet import MOBILENET_WEIGHTS, prepare_mobilenet_v2
from .trees import DEEPFOREST, prepare_trees

CONFIG = 'configs/quickstart/faster-rcnn_mobilenet-v2_fpt_trees.py'
CACHE = 'data/packages'
PICTURE_TILES = 2
PICTURE_SCORE = 0.5


def parser() -> argparse.ArgumentParser:
    """The flags of tools/quickstart.py."""
    parser = argparse.ArgumentParser(
        description='Train, evaluate and draw a small detector of trees')
    parser.add_argument(
        '--neck',
        choices=('fpt', 'fpn'),
        default='fpt',
        help='fpn trains the same detector with a plain FPN')
    parser.add_argument('--epochs', type=int, help="the config's by default")
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--work-dir',
        help='default: work_dirs/quickstart, or work_dirs/quickstart-fpn')
    parser.add_argument(
        '--fresh',
        action='store_true',
        help='train again although a finished or interrupted run is there')
    return parser


def default_work_dir(neck: str) -> str:
    """Where the quickstart with a neck keeps its run."""
    return 'work_dirs/quickstart' + ('' if neck == 'fpt' else f'-{neck}')


def quickstart_config(neck: str, epochs: int | None, seed: int,
                      work_dir: str) -> Config:
    """The shipped config under the flags of the quickstart.

    Raises:
        ValueError: ``epochs`` is less than 1.
    """
    cfg = Config.fromfile(CONFIG)
    if neck == 'fpn':
        cfg.model.neck.type = 'FPN'
    if epochs is not None:
        if epochs < 1:
            raise ValueError(f'--epochs must be at least 1, got {epochs}')
        rescale_schedule(cfg, epochs)
    cfg.randomness = dict(seed=seed)
    cfg.work_dir = work_dir
    return cfg


def rescale_schedule(cfg: Config, epochs: int) -> None:
    """Train for another number of epochs: the schedule is stretched along."""
    for scheduler in cfg.param_scheduler:
        if scheduler.get('by_epoch', True):
            scheduler.end = epochs
            if 'T_max' in scheduler:
                scheduler.T_max = epochs
    cfg.train_cfg.max_epochs = epochs
    cfg.train_cfg.val_interval = min(cfg.train_cfg.val_interval, epochs)


class TrainingTime(Hook):
    """Counts the seconds of training, validation left out.

    The count is kept in the checkpoints, so a resumed run goes on counting.
    """

    KEY = 'train_seconds'

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def after_train_iter(self,
                         runner,
                         batch_idx,
                         data_batch=None,
                         outputs=None) -> None:
        """Add what the iteration took."""
        before = runner.message_hub.get_info(self.KEY, 0.0)
        runner.message_hub.update_info(
            self.KEY, before + time.perf_counter() - self._start)


def run(args: argparse.Namespace) -> dict:
    """What tools/quickstart.py does.

    Returns:
        The content of ``summary.json``.
    """
    work_dir = Path(args.work_dir or default_work_dir(args.neck))
    cfg = quickstart_config(args.neck, args.epochs, args.seed, str(work_dir))

    _announce(DEEPFOREST)
    prepare_trees('data/trees', CACHE)
    _announce(MOBILENET_WEIGHTS)
    prepare_mobilenet_v2('data/pretrained/mobilenet_v2.pth', CACHE)

    runner, metrics = _train(cfg, work_dir, args.fresh)
    picture = draw_detections(runner.model,
                              runner.test_loop.dataloader.dataset,
                              work_dir / 'detections.png')
    summary = dict(
        ap=metrics['coco/bbox_mAP'],
        ap50=metrics['coco/bbox_mAP_50'],
        ap75=metrics['coco/bbox_mAP_75'],
        train_images=_count_images(cfg.train_dataloader),
        val_images=_count_images(cfg.val_dataloader),
        train_seconds=round(
            runner.message_hub.get_info(TrainingTime.KEY, 0.0), 1),
        picture=str(picture),
        neck=args.neck,
        epochs=cfg.train_cfg.max_epochs,
        seed=args.seed)
    write_json(work_dir / 'summary.json', summary)
    _report(summary, work_dir, find_latest_checkpoint(str(work_dir)))
    return summary


def _announce(package) -> None:
    print(f'{package.content}: {package.source}; licence: {package.licence}',
          flush=True)


def _count_images(dataloader: dict) -> int:
    """Images of the annotation file, those without trees included."""
    dataset = dataloader.dataset
    path = Path(dataset.data_root) / dataset.ann_file
    return len(json.loads(path.read_text())['images'])


def _train(cfg: Config, work_dir: Path,
           fresh: bool) -> tuple[Runner, dict[str, float]]:
    """Train, or go on with what is there, and evaluate."""
    key = dict(
        config=cfg.pretty_text,
        torch=torch.__version__,
        mmdet=mmdet.__version__)
    settings = work_dir / 'settings.json'
    same = settings.is_file() and json.loads(settings.read_text()) == key
    latest = find_latest_checkpoint(str(work_dir)) if same else None
    if latest is not None and not fresh and Path(latest).is_file():
        cfg.resume = True
        print(f'Found {latest} of the same settings and go on from there '
              '(--fresh trains again)', flush=True)
    else:
        (work_dir / 'last_checkpoint').unlink(missing_ok=True)
        write_json(settings, key)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(TrainingTime(), priority='VERY_LOW')
    runner.train()
    return runner, runner.test()


def draw_detections(model: torch.nn.Module, dataset: BaseDataset,
                    path: str | Path) -> Path:
    """Draw annotations (left) and detections (right) of held-out tiles.

    Args:
        model: A trained detector.
        dataset: Its test dataset, whose pipeline loads annotations.
        path: The picture to write.

    Returns:
        ``path``.
    """
    busiest = sorted(
        range(len(dataset)),
        key=lambda i: -len(dataset.get_data_info(i)['instances']))
    model.eval()
    rows = []
    for i in busiest[:PICTURE_TILES]:
        data = dataset[i]
        with torch.no_grad():
            sample, = model.test_step(
                dict(
                    inputs=[data['inputs']],
                    data_samples=[data['data_samples']]))
        image = mmcv.imread(sample.img_path, channel_order='rgb')
        found = sample.pred_instances
        found = found.bboxes[found.scores > PICTURE_SCORE]
        # The test pipeline loads annotations after resizing: like the
        # detections they are in pixels of the file.
        annotated = sample.gt_instances.bboxes
        annotated = getattr(annotated, 'tensor', annotated)
        rows.append(
            np.concatenate([
                _draw_boxes(image, annotated, (255, 255, 255)),
                _draw_boxes(image, found, (255, 200, 0))
            ], 1))
    width = max(row.shape[1] for row in rows)
    rows = [
        mmcv.impad(row, shape=(row.shape[0], width), pad_val=(255, 255, 255))
        for row in rows
    ]
    picture = cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR)
    with replacing(path) as temporary:
        if not cv2.imwrite(str(temporary), picture):
            raise OSError(f'cannot write {path}: is the disk full?')
    return Path(path)


def _draw_boxes(image: np.ndarray, boxes: torch.Tensor,
                colour: tuple[int, int, int]) -> np.ndarray:
    visualizer = Visualizer(image=image)
    if len(boxes):
        visualizer.draw_bboxes(boxes, edge_colors=colour, line_widths=2, alpha=1)
    return visualizer.get_image()


def _report(summary: dict, work_dir: Path, checkpoint: str | None) -> None:
    lines = ['', _figures(summary)]
    other = dict(fpt='fpn', fpn='fpt')[summary['neck']]
    beside = Path(default_work_dir(other)) / 'summary.json'
    if beside.is_file():
        lines.append(_figures(json.loads(beside.read_text())))
    lines += [
        f'on {summary["val_images"]} held-out tiles that the recipe was tuned '
        'on: a validation set, not a test set', '',
        f'Annotations (left), detections (right): {summary["picture"]}',
        f'Figures: {work_dir / "summary.json"}',
        f'Checkpoint: {checkpoint}', '', 'Next: bash tools/run_tests.sh',
        f'or:   bash tools/quickstart.sh --neck {other}'
    ]
    print('\n'.join(lines), flush=True)


def _figures(summary: dict) -> str:
    """One line of a table: whose figures, and what they cost."""
    figures = '  '.join(f'{name.upper()} {summary[name]:.3f}'
                        for name in ('ap', 'ap50', 'ap75'))
    return (f'{summary["neck"].upper()}  {figures}  '
            f'({summary["epochs"]} epochs, seed {summary["seed"]}, '
            f'{summary["train_seconds"] / 60:.1f} minutes)')
