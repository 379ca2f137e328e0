"""Models with FPT, for tests of its attention maps."""

import torch
from mmengine.config import Config

from fpt_plugin import FPT
from fpt_plugin.commands.common import load_model
from fpt_plugin.commands.visualize_attention.network_input import network_views
from helpers.graft_detectors import wrapped
from helpers.oracles import randomise
from helpers.shipped_configs import load

DETECTOR = 'quickstart/faster-rcnn_mobilenet-v2_fpt_trees.py'
SEGMENTOR = 'quickstart/sem-fpn_mobilenet-v2_fpt_nuclei.py'
UFP = 'quickstart/sem-fpn_mobilenet-v2-d8_ufp-fpt_nuclei.py'


def config(name: str = DETECTOR, **neck) -> Config:
    """Load a shipped config for small images, with settings of its neck."""
    cfg = load(name)
    for transform in cfg.test_dataloader.dataset.pipeline:
        if transform.type == 'Resize':
            transform.scale = (160, 120)
    cfg.model.neck.update(neck)
    return cfg


def listed(count: int = 1) -> Config:
    """Put ``count`` FPT behind an FPN, as a list of necks."""
    cfg = config()
    fpn = dict(cfg.model.neck, type='FPN', num_outs=5)
    fpt = dict(type='FPT', pyramid=None, in_channels=128, out_channels=128,
               num_levels=4)
    cfg.model.neck = [fpn, *[fpt] * count]
    return cfg


def teacher() -> Config:
    """Wrap the detector in a SoftTeacher."""
    cfg = config()
    cfg.model = wrapped(cfg).model
    return cfg


def sliding() -> Config:
    """Set up a segmentor with sliding-window inference."""
    cfg = config(SEGMENTOR)
    cfg.model.test_cfg = dict(mode='slide', crop_size=(64, 64), stride=(48, 48))
    return cfg


LGT = dict(type='LocalGroundingTransformer', window=3, pad='mask')
MODELS = dict(
    fpt=config,
    pafpn=lambda: config(pyramid=dict(type='PAFPN')),
    st=lambda: config(type='SelfTransformerNeck'),
    gt=lambda: config(type='GroundingTransformerNeck'),
    lgt=lambda: config(grounding_transformer=LGT),
    rt=lambda: config(type='RenderingTransformerNeck'),
    listed=listed,
    stacked=lambda: listed(2),
    nested=lambda: config(pyramid=dict(type='FPT', num_levels=3), num_levels=2),
    teacher=teacher,
    segmentor=lambda: config(SEGMENTOR),
    sliding=sliding,
    ufp=lambda: config(UFP),
    light=lambda: config(preset='light'),
    full=lambda: config(preset='full'),
    paper=lambda: config(preset='paper'),
    coarse=lambda: config(first_level=1),
    odd_strides=lambda: config(key_strides=[3, 2, 1], num_levels=3),
)


def prepared(cfg: Config, image) -> tuple[torch.nn.Module, list]:
    """Build a model with random FPT layers, and its views of an image."""
    model, cfg = load_model(cfg)
    for fpt in model.modules():
        if isinstance(fpt, FPT):
            for name in ('self', 'grounding', 'rendering'):
                for layer in getattr(fpt, f'{name}_transformers').values():
                    randomise(layer)
    return model, network_views(model, cfg, image)
