"""The quickstart's detector of trees."""

from __future__ import annotations

import json
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from ...openmmlab.models import load_config
from ..common import config_folder
from .mobilenet import MOBILENET_WEIGHTS, prepare_mobilenet_v2
from .pictures import write_rows
from .task import CACHE, Task
from .trees import DEEPFOREST, prepare_trees

PICTURE_TILES = 2
PICTURE_SCORE = 0.5


class Detection(Task):
    """Trees in aerial photographs: data, config, figures and picture."""

    name = 'detection'
    config = 'quickstart/faster-rcnn_mobilenet-v2_fpt_trees.py'
    variants = ('fpt', 'fpn')
    work_dir = 'work_dirs/quickstart'
    packages = (DEEPFOREST, MOBILENET_WEIGHTS)
    shown = ('ap', 'ap50', 'ap75')
    picture = 'detections.png'
    caption = 'Annotations (left), detections (right)'
    held_out = 'on which the recipe was tuned: a validation set, not a test set'

    def load(self, variant: str) -> Config:
        """Load the shipped config with the neck of a variant."""
        cfg = load_config(config_folder('fpt_plugin') / self.config)
        if variant == 'fpn':
            cfg.model.neck.type = 'FPN'
        return cfg

    def prepare(self) -> None:
        """Download photographs and weights if they are missing."""
        prepare_trees('data/trees', CACHE)
        prepare_mobilenet_v2('data/pretrained/mobilenet_v2.pth', CACHE)

    def count_images(self, dataloader: dict) -> int:
        """Count the images of the annotation file, also those without trees."""
        dataset = dataloader.dataset
        path = Path(dataset.data_root) / dataset.ann_file
        return len(json.loads(path.read_text())['images'])

    def test(self, runner: Runner) -> dict[str, float]:
        """Compute COCO metrics on the held-out tiles."""
        metrics = runner.test()
        return dict(
            ap=metrics['coco/bbox_mAP'],
            ap50=metrics['coco/bbox_mAP_50'],
            ap75=metrics['coco/bbox_mAP_75'])

    def draw(self, runner: Runner, path: Path) -> Path:
        """Draw some of the held-out tiles."""
        return draw_detections(runner.model,
                               runner.test_loop.dataloader.dataset, path)


def draw_detections(model: torch.nn.Module, dataset: BaseDataset,
                    path: str | Path) -> Path:
    """Draw annotations (left) and detections (right) of held-out tiles.

    Args:
        model: A trained detector.
        dataset: Its test dataset; the pipeline must load annotations.
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
        # The test pipeline loads annotations after resizing, so that they are
        # in pixels of the file, as the detections are.
        annotated = sample.gt_instances.bboxes
        annotated = getattr(annotated, 'tensor', annotated)
        rows.append(
            np.concatenate([
                _draw_boxes(image, annotated, (255, 255, 255)),
                _draw_boxes(image, found, (255, 200, 0))
            ], 1))
    return write_rows(rows, path)


def _draw_boxes(image: np.ndarray, boxes: torch.Tensor,
                colour: tuple[int, int, int]) -> np.ndarray:
    visualizer = Visualizer(image=image)
    if len(boxes):
        visualizer.draw_bboxes(boxes, edge_colors=colour, line_widths=2, alpha=1)
    return visualizer.get_image()
