"""The quickstart's segmentor of cell nuclei."""

from __future__ import annotations

import copy
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import METRICS
from mmengine.runner import Runner

from ...openmmlab.models import load_config
from ..common import config_folder
from .mobilenet import MOBILENET_WEIGHTS, prepare_mobilenet_v2
from .nuclei import HISTOLYTICS, prepare_nuclei, prepare_stroma
from .pictures import write_rows
from .task import CACHE, Task

PICTURE_TILES = 2
OVERLAY = 0.45  # opacity of the classes


class Segmentation(Task):
    """Nuclei in a stained section: data, config, figures and picture."""

    name = 'segmentation'
    config = 'quickstart/sem-fpn_mobilenet-v2_fpt_nuclei.py'
    ufp_config = 'quickstart/sem-fpn_mobilenet-v2-d8_ufp-fpt_nuclei.py'
    variants = ('fpt', 'fpn', 'ufp')
    work_dir = 'work_dirs/quickstart-segmentation'
    packages = (HISTOLYTICS, MOBILENET_WEIGHTS)
    shown = ('miou', 'aacc')
    picture = 'segments.png'
    caption = 'Pseudo-labels (left), predictions (right)'
    held_out = 'from the same image; the labels look like the output of a model'

    def load(self, variant: str) -> Config:
        """Load the shipped config with the neck of a variant."""
        name = self.ufp_config if variant == 'ufp' else self.config
        cfg = load_config(config_folder('fpt_plugin') / name)
        if variant == 'fpn':
            cfg.model.neck.type = 'FPN'
        return cfg

    def prepare(self) -> None:
        """Download image and weights if they are missing."""
        prepare_nuclei('data/nuclei', CACHE)
        prepare_mobilenet_v2('data/pretrained/mobilenet_v2_mmseg.pth', CACHE,
                             library='mmseg')

    def count_images(self, dataloader: dict) -> int:
        """Count the images of a split."""
        dataset = dataloader.dataset
        folder = Path(dataset.data_root) / dataset.data_prefix.img_path
        return len(list(folder.glob('*.png')))

    def test(self, runner: Runner) -> dict:
        """Compute metrics of the held-out tiles, from 0 to 1, with IoU by class.

        ``transfer`` has the metrics of the second image; None if pyarrow, which
        reads its polygons, is not installed.
        """
        try:
            stroma = prepare_stroma('data/nuclei-stroma', CACHE)
        except ImportError as error:
            print(f'The second image is skipped: {error}', flush=True)
            stroma = None
        return dict(
            **_figures(runner),
            transfer=stroma and _figures(_runner_over(runner, stroma)))

    def draw(self, runner: Runner, path: Path) -> Path:
        """Draw labels and predictions over some of the held-out tiles."""
        return draw_segments(runner.model,
                             runner.test_loop.dataloader.dataset, path)

    def lines(self, summary: dict) -> list[str]:
        """Format the figures of the second image."""
        transfer = summary['transfer']
        return [f'on another image: {self.figures(transfer)}'] if transfer else []


def _runner_over(runner: Runner, root: Path) -> Runner:
    """Make a runner that tests the same model on other tiles."""
    cfg = copy.deepcopy(runner.cfg)
    cfg.test_dataloader.dataset.update(
        data_root=str(root),
        data_prefix=dict(img_path='images/test', seg_map_path='labels/test'))
    return Runner(
        model=runner.model,
        work_dir=cfg.work_dir,
        test_dataloader=cfg.test_dataloader,
        test_evaluator=cfg.test_evaluator,
        test_cfg=cfg.test_cfg,
        default_scope=cfg.default_scope,
        log_processor=cfg.log_processor,
        experiment_name=f'{runner.experiment_name}-{root.name}')


def _figures(runner: Runner) -> dict:
    """Compute mIoU, pixel accuracy, and IoU by class on the test data."""
    areas = ClassAreas(runner.test_loop.dataloader.dataset.metainfo)
    runner.register_hook(areas)
    metrics = runner.test()
    return dict(
        miou=float(metrics['mIoU']) / 100,
        aacc=float(metrics['aAcc']) / 100,
        iou=areas.iou())


class ClassAreas(Hook):
    """Sum the classes' areas during a test.

    mmseg's IoUMetric prints the IoU of each class but returns only the mean.

    Args:
        metainfo: The dataset's, with ``classes``.
    """

    def __init__(self, metainfo: dict) -> None:
        self.classes = metainfo['classes']
        self._metric = METRICS.get('mmseg.IoUMetric')
        self._areas = 0

    def after_test_iter(self,
                        runner,
                        batch_idx,
                        data_batch=None,
                        outputs=None) -> None:
        """Add the areas of a batch."""
        for sample in outputs:
            self._areas = self._areas + torch.stack(
                self._metric.intersect_and_union(
                    sample.pred_sem_seg.data.squeeze().cpu(),
                    sample.gt_sem_seg.data.squeeze().cpu(),
                    len(self.classes), 255))

    def iou(self) -> dict[str, float | None]:
        """Return intersection over union by class; None if a class is absent."""
        return {
            name: intersection / union if union else None
            for name, intersection, union in zip(self.classes,
                                                 *self._areas[:2].tolist())
        }


def draw_segments(model: torch.nn.Module, dataset, path: str | Path) -> Path:
    """Draw labels (left) and predictions (right) over held-out tiles.

    Args:
        model: A trained segmentor.
        dataset: Its test dataset; the pipeline must load annotations.
        path: The picture to write.

    Returns:
        ``path``.
    """
    palette = np.array(dataset.metainfo['palette'], np.uint8)
    model.eval()
    rows = []
    for i in range(min(PICTURE_TILES, len(dataset))):
        data = dataset[i]
        with torch.no_grad():
            sample, = model.test_step(
                dict(
                    inputs=[data['inputs']],
                    data_samples=[data['data_samples']]))
        image = mmcv.imread(sample.img_path, channel_order='rgb')
        rows.append(
            np.concatenate([
                _overlay(image, segments.data.squeeze().cpu().numpy(), palette)
                for segments in (sample.gt_sem_seg, sample.pred_sem_seg)
            ], 1))
    return write_rows(rows, path)


def _overlay(image: np.ndarray, labels: np.ndarray,
             palette: np.ndarray) -> np.ndarray:
    """Blend the classes' colours over an image, except for the first class."""
    mixed = cv2.addWeighted(palette[labels], OVERLAY, image, 1 - OVERLAY, 0)
    return np.where((labels > 0)[..., None], mixed, image)
