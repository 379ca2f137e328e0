"""The older ONNX exporter, which deployment tools still use."""

import io

import pytest
import torch
from helpers.oracles import maps_of, randomise, relative_error

from fpt_plugin import (
    GroundingTransformer,
    LambdaLayer,
    LocalGroundingTransformer,
    RenderingTransformer,
    SelfTransformer,
)

onnxruntime = pytest.importorskip('onnxruntime')

LAYERS = {
    'ST': (SelfTransformer, {}),
    'GT': (GroundingTransformer, dict(key_stride=2)),
    'LGT': (LocalGroundingTransformer, {}),
    'LGT, masked': (LocalGroundingTransformer, dict(pad='mask', window=3)),
    'RT': (RenderingTransformer, {}),
    'lambda': (LambdaLayer, dict(num_heads=2, query_depth=4, intra_depth=2,
                                 context_size=5)),
}


def inputs(layer, height, width, batch):
    fine, coarse = maps_of((height, width), (height // 2, width // 2),
                           batch=batch)
    return {
        SelfTransformer: (fine, ), LambdaLayer: (fine, ),
        RenderingTransformer: (coarse, fine)
    }.get(type(layer), (fine, coarse))


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', LAYERS)
def test_one_graph_works_at_every_size(name):
    cls, kwargs = LAYERS[name]
    layer = randomise(cls(12, **kwargs)).eval()
    maps = inputs(layer, 6, 8, batch=2)
    names = [f'map{i}' for i in range(len(maps))]
    file = io.BytesIO()
    torch.onnx.export(
        layer, maps, file, dynamo=False, opset_version=13, input_names=names,
        output_names=['out'], dynamic_axes={
            key: {0: 'batch', 2: f'{key}_height', 3: f'{key}_width'}
            for key in names})
    session = onnxruntime.InferenceSession(
        file.getvalue(), providers=['CPUExecutionProvider'])
    for sizes in ((6, 8, 2), (10, 12, 2), (6, 16, 3)):
        maps = inputs(layer, *sizes)
        got, = session.run(None, dict(zip(names, (x.numpy() for x in maps))))
        with torch.no_grad():
            want = layer(*maps)
        assert relative_error(torch.from_numpy(got), want) <= 1e-5
