"""CamVid in the layout of the SegNet tutorial, split by video sequence.

Brostow et al., Semantic object classes in video, 2009. Neighbouring frames are
nearly equal, so the data are split by whole sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmengine.registry import DATASETS
from mmseg.datasets import BaseSegDataset

from ...openmmlab.registry import register


@register(DATASETS)
class CamVid(BaseSegDataset):
    """Street scenes of 480x360 pixels in 11 classes.

    Args:
        sequences: Prefixes of image names; only matching images are used.
            None: all.
        **kwargs: BaseSegDataset's.
    """

    METAINFO = dict(
        classes=('sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign',
                 'fence', 'car', 'pedestrian', 'bicyclist'),
        palette=[[128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128],
                 [60, 40, 222], [128, 128, 0], [192, 128, 128], [64, 64, 128],
                 [64, 0, 128], [64, 64, 0], [0, 128, 192]])

    def __init__(self, sequences: Sequence[str] | None = None,
                 **kwargs) -> None:
        self.sequences = None if sequences is None else tuple(sequences)
        # Label 11 means unlabelled.
        super().__init__(**{
            'img_suffix': '.png', 'seg_map_suffix': '.png', 'ignore_index': 11,
            **kwargs})

    def load_data_list(self) -> list[dict]:
        """Return the images of the sequences."""
        items = super().load_data_list()
        if self.sequences is None:
            return items
        return [item for item in items
                if Path(item['img_path']).name.startswith(self.sequences)]
