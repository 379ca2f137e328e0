"""Picture of the predictions in a segmentation study, and of FPT's attention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import find_latest_checkpoint
from torch import nn

from ...io.checkpoints import read_state_dict
from ...io.files import replacing
from ...openmmlab.models import build_model
from ..common import load_weights
from ..visualize_attention.maps import PixelAttention, attention_branches
from ..visualize_attention.model import outermost_fpts
from ..visualize_attention.network_input import NetworkView
from .running import Study


def draw_answers(study: Study, rows: Sequence[str], work_dir: Path, out: Path,
                 seed: int = 0, sample: int = 0) -> None:
    """Draw image, labels, the prediction of each row, and one attention map.

    The map is of the last row with an FPT.

    Args:
        study: A study of segmentors with trained rows.
        rows: The rows to draw.
        work_dir: Folder of the runs, one folder for each row and seed.
        out: The PNG file.
        seed: Seed of the runs.
        sample: Index of the image in the test data.

    Raises:
        FileNotFoundError: A row has no checkpoint.
        ValueError: The study is not of segmentors.
    """
    if study.config.default_scope != 'mmseg':
        raise ValueError('a picture needs a study of segmentors, got '
                         f'default_scope={study.config.default_scope!r}')
    with DefaultScope.overwrite_default_scope('mmseg'):
        data_set = DATASETS.build(study.config.test_dataloader.dataset)
        item = data_set[sample]
        models = {row: _trained(study, row, seed, work_dir) for row in rows}
        labels = item['data_samples'].gt_sem_seg.data[0].numpy()
        ignored = labels >= len(data_set.metainfo['classes'])
        image = item['inputs'].permute(1, 2, 0).numpy()
        if study.config.model.data_preprocessor.get('bgr_to_rgb'):
            image = image[..., ::-1]
        panels = [('image', image),
                  ('labels', _coloured(image, labels, ignored, data_set))]
        for row, model in models.items():
            predicted = _predict(model, item)
            accuracy = (predicted == labels)[~ignored].mean()
            panels.append((f'{row}: {accuracy:.0%} correct',
                           _coloured(image, predicted, ignored, data_set)))
        with_fpt = [row for row in rows if outermost_fpts(models[row])]
        attention = None
        if with_fpt and not ignored.all():
            attention = _attention_of(models[with_fpt[-1]], item, ~ignored)
            panels.append((f'attention of {with_fpt[-1]} from +', image))
    _draw(panels, attention, out)


def _trained(study: Study, row: str, seed: int, work_dir: Path) -> nn.Module:
    folder = work_dir / f'{row}-{seed}'
    checkpoint = find_latest_checkpoint(str(folder)) if folder.is_dir() else None
    if checkpoint is None:
        raise FileNotFoundError(
            f'{folder} holds no checkpoint: train the row {row!r} first')
    model = build_model(study.config_of(row, seed)).eval()
    load_weights(model, read_state_dict(checkpoint).state_dict, checkpoint)
    return model


def _predict(model: nn.Module, item: dict) -> np.ndarray:
    """Predict the class numbers (H, W)."""
    with torch.no_grad():
        found = model.test_step(_batch(item))[0]
    return found.pred_sem_seg.data[0].cpu().numpy()


def _batch(item: dict) -> dict:
    return dict(inputs=[item['inputs']], data_samples=[item['data_samples']])


def _attention_of(model: nn.Module, item: dict,
                  labelled: np.ndarray) -> PixelAttention:
    """Compute a labelled pixel's attention at the finest level that has it."""
    rows, columns = np.nonzero(labelled)
    middle = len(rows) // 2
    inputs = model.data_preprocessor(_batch(item), False)['inputs']
    view = NetworkView(inputs, scale=(1., 1.))
    branches = attention_branches(
        model, [view], [(int(columns[middle]), int(rows[middle]))])
    return next(branch.attentions[0] for branch in branches if branch.attentions)


def _coloured(image: np.ndarray, classes: np.ndarray, ignored: np.ndarray,
              data_set) -> np.ndarray:
    """Colour the classes by the data set's palette; ignored pixels are pale."""
    palette = np.array(data_set.metainfo['palette'], np.uint8)
    pale = (image * 0.25 + 190).astype(np.uint8)
    colours = palette[np.where(ignored, 0, classes)]
    return np.where(ignored[..., None], pale, colours)


def _draw(panels: Sequence[tuple[str, np.ndarray]],
          attention: PixelAttention | None, out: Path) -> None:
    from matplotlib.figure import Figure
    figure = Figure(figsize=(2.4 * len(panels), 2.7), layout='constrained')
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, picture) in zip(axes, panels):
        axis.imshow(picture)
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    if attention is not None:
        height, width = panels[-1][1].shape[:2]
        axes[-1].imshow(attention.weights, cmap='inferno', alpha=0.75,
                        extent=(-0.5, width - 0.5, height - 0.5, -0.5))
        axes[-1].plot(*attention.point, '+', color='cyan', markersize=10,
                      markeredgewidth=2)
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=110, format='png')
