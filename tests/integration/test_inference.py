"""The inferencers and functions of mmdet and mmseg on models with FPT."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import cache

import cv2
import numpy as np
import pytest
import torch
from helpers.code_blocks import code_blocks
from helpers.runs import alone
from helpers.small_models import DETECTORS, SEGMENTORS, train
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmengine.config import Config
from mmseg.apis import MMSegInferencer, inference_model, init_model


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Train a shipped config once."""
    return cache(lambda name: train(name, tmp_path_factory.mktemp('run')))


def assert_loaded(model: torch.nn.Module, checkpoint: str):
    """Assert that every tensor of the model is the checkpoint's."""
    saved = torch.load(checkpoint, weights_only=True)['state_dict']
    found = model.state_dict()
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[key], saved[key]) for key in saved)


# Functions of mmdet and mmseg: inferencer, init, inference.
DETECTION = DetInferencer, init_detector, inference_detector
SEGMENTATION = MMSegInferencer, init_model, inference_model
API = {**dict.fromkeys(DETECTORS, DETECTION), **dict.fromkeys(SEGMENTORS, SEGMENTATION)}


def prediction(sample) -> torch.Tensor:
    """Return the label map, or boxes, scores and labels of each detection."""
    if 'pred_sem_seg' in sample:
        return sample.pred_sem_seg.data[0]
    found = sample.pred_instances
    return torch.cat([found.bboxes, found.scores[:, None], found.labels[:, None]], 1)


def ways_of(name: str, run, image: str) -> dict:
    """Return the functions that make a model and predict, by what they take."""
    inferencer, init, infer = API[name]
    meta = torch.load(run.checkpoint, weights_only=True)['meta']

    def by_inferencer(*args):
        made = inferencer(*args, device='cpu')
        if name in DETECTORS:
            return made.model, prediction(
                made(image, return_datasamples=True)['predictions'][0])
        return made.model, torch.from_numpy(made(image)['predictions'])

    def by_functions(config, pixels):
        model = init(config, run.checkpoint, device='cpu')
        return model, prediction(infer(model, pixels))

    return dict(
        config_and_weights=lambda: by_inferencer(run.config, run.checkpoint),
        weights=lambda: by_inferencer(None, run.checkpoint),
        functions=lambda: by_functions(run.config, image),
        functions_with_the_config_inside=lambda: by_functions(
            Config.fromstring(meta['cfg'], '.py'), image),
        functions_on_pixels=lambda: by_functions(run.config, cv2.imread(image)))


@pytest.mark.parametrize('name', API)
def test_all_ways_give_the_same_predictions(trained, name):
    run = trained(name)
    found = {}
    for way, predict in ways_of(name, run, run.images[0]).items():
        with alone():
            model, found[way] = predict()
        assert_loaded(model, run.checkpoint)
        classes = model.dataset_meta['classes']
        assert classes == ('square', ) if name in DETECTORS else len(classes) == 19, way
    first = found['config_and_weights']
    if name in DETECTORS:
        assert len(first) > 10 and first[:, 4].unique().numel() > 5
    else:
        assert first.shape == cv2.imread(run.images[0]).shape[:2]
        assert first.unique().numel() > 2
    for way, values in found.items():
        assert torch.equal(values, first), way


# ----------------------------------------------------------------------- arrays

HOSTS = dict(mmdet=list(DETECTORS)[0], mmseg=list(SEGMENTORS)[0])


@alone()
@pytest.mark.parametrize('name', HOSTS.values())
def test_one_model_takes_arrays_and_paths_in_any_order(trained, tmp_path, name):
    """Arrays of another range than 0 to 255 are refused."""
    run = trained(name)
    inferencer, init, infer = API[name]
    model = init(run.config, run.checkpoint, device='cpu')
    image = cv2.imread(run.images[0], cv2.IMREAD_GRAYSCALE)
    path = str(tmp_path / 'grey.png')
    cv2.imwrite(path, image)
    want = prediction(infer(model, path))
    given = [image, path, image[..., None], image.astype(np.uint16)]
    for found in (*infer(model, given), *infer(model, given[1:3]),
                  *(infer(model, one) for one in given)):
        assert torch.equal(prediction(found), want)
    inferencer = inferencer(run.config, run.checkpoint, device='cpu')
    for wrong in (image / 255, image.astype(np.uint16) * 257):
        for call in (lambda x: infer(model, x), inferencer):
            with pytest.raises(ValueError, match='from 0 to 255'):
                call(wrong)


# ---------------------------------------------------------------- docs/deploy.md

SNIPPETS = {name: code for _, name, code in code_blocks() if name is not None}


def test_guide_has_a_snippet_for_each_library():
    assert SNIPPETS.keys() == HOSTS.keys()


@pytest.mark.parametrize('host', HOSTS)
def test_snippets_of_the_guide_run(trained, tmp_path, host):
    """Run each in its own process, with files of the names that it uses."""
    code, run = SNIPPETS[host], trained(HOSTS[host])
    sources = dict(pth=run.checkpoint, py=run.config, png=run.images[0])
    given = re.findall(r"'([\w./-]+\.(pth|py|png|jpg))'", code)
    assert {suffix for _, suffix in given} & {'png', 'jpg'}
    for file, suffix in given:
        target = tmp_path / file
        target.parent.mkdir(parents=True, exist_ok=True)
        if suffix == 'jpg':
            cv2.imwrite(str(target), cv2.imread(run.images[0]))
        else:
            shutil.copy(sources[suffix], target)
    before = set(tmp_path.rglob('*'))
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=tmp_path,
                            capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert any(path.is_file() for path in set(tmp_path.rglob('*')) - before)
