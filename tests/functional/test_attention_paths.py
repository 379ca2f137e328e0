"""Which path mixture attention takes, and the fused and the eager path."""

from types import SimpleNamespace

import pytest
import torch
from helpers.functions import Recorder, attention_operands
from helpers.oracles import all_agree, relative_error
from helpers.oracles import run_with_gradients as run

from fpt_plugin.functional import attention, checks, mixture_attention, paths, reference

both_similarities = pytest.mark.parametrize('similarity', checks.SIMILARITIES)


def run_oracle(inputs, **kwargs):
    return run(reference.mixture_attention, [t.double() for t in inputs], **kwargs)


def path_of(query, value, similarity='dot'):
    return paths.choose_mixture_path(None, query, value, similarity)


@both_similarities
@pytest.mark.parametrize('path', paths.MIXTURE_PATHS)
@pytest.mark.parametrize('origin', ['argument', 'environment'])
def test_every_path_gives_the_same(similarity, path, origin, monkeypatch):
    inputs = attention_operands(dtype=torch.float64)
    whole = run(reference.mixture_attention, inputs, similarity=similarity)
    taken = []
    for name in ('_fused', '_eager'):
        monkeypatch.setattr(
            attention, name, lambda *args, made=getattr(attention, name), name=
            name: taken.append(name) or made(*args))
    kwargs = {}
    if origin == 'argument':
        kwargs['path'] = path
        monkeypatch.setenv('FPT_ATTENTION', 'no such path')
    else:
        monkeypatch.setenv('FPT_ATTENTION', path)
    all_agree(run(mixture_attention, inputs, similarity=similarity, **kwargs),
              whole, 1e-10)
    assert taken == ([] if path == 'chunked' else [f'_{path}'])


@both_similarities
@pytest.mark.parametrize('pieces', [2, 4, 9])
def test_queries_in_pieces_give_the_same(similarity, pieces, monkeypatch):
    """The fused path cuts queries on a GPU if there are few keys."""
    inputs = attention_operands(lq=9, dtype=torch.float64)
    want = run_oracle(inputs, similarity=similarity)
    monkeypatch.setattr(attention, '_num_pieces', lambda *args: pieces)
    got = run(mixture_attention, inputs, similarity=similarity, path='fused')
    all_agree(got, want, 1e-10)


@pytest.mark.parametrize('queries, keys, pieces', [
    (67_200, 1050, 8), (16_800, 1050, 8), (4200, 1050, 4), (1050, 1050, 1),
    (16_800, 16_800, 1), (5, 3, 1)])
def test_pieces_keep_a_gpu_busy(queries, keys, pieces):
    """Two images in two parts."""
    query, key = (
        torch.empty(2, 2, n, 8, device='meta') for n in (queries, keys))
    assert attention._num_pieces(query, key) == pieces
    on_cpu = torch.empty(2, 2, 9, 8)
    assert attention._num_pieces(on_cpu, on_cpu) == 1


@both_similarities
@pytest.mark.parametrize('depth, channels', [(3, 4), (5, 3), (8, 8)])
def test_fused_path_keeps_no_scores(similarity, depth, channels, score_budget):
    inputs = attention_operands(batch=1, lq=60, lk=50, depth=depth, channels=channels)
    score_budget(1000)
    with Recorder() as recorder:
        got = run(mixture_attention, inputs, similarity=similarity, path='fused')
    assert recorder.largest < 2000 < 60 * 50
    all_agree(got, run_oracle(inputs, similarity=similarity), 1e-5)


@pytest.mark.parametrize('dtype, similarity, depth, channels, major, path', [
    (torch.bfloat16, 'dot', 64, 128, 9, 'fused'),
    (torch.bfloat16, 'neg_euclid', 32, 128, 8, 'fused'),
    (torch.bfloat16, 'dot', 64, 128, 7, 'chunked'),
    (torch.bfloat16, 'dot', 64, 264, 9, 'chunked'),
    (torch.bfloat16, 'neg_euclid', 256, 256, 9, 'chunked'),
    (torch.float16, 'dot', 64, 128, 9, 'fused'),
    (torch.float16, 'neg_euclid', 32, 128, 9, 'chunked'),
    (torch.float32, 'dot', 64, 128, 9, 'fused'),
    (torch.float32, 'dot', 64, 256, 9, 'chunked'),
    (torch.float64, 'dot', 64, 128, 9, 'chunked'),
])
def test_the_table_of_a_gpu(dtype, similarity, depth, channels, major, path,
                            monkeypatch):
    monkeypatch.setattr(paths, 'FUSED_MAX_CHANNELS', {
        ('meta', of): most for (_, of), most in paths.FUSED_MAX_CHANNELS.items()})
    monkeypatch.setattr(torch.cuda, 'get_device_properties',
                        lambda device: SimpleNamespace(major=major))
    query = torch.empty(1, 2, 99, depth, dtype=dtype, device='meta')
    value = torch.empty(1, 99, channels, dtype=dtype, device='meta')
    assert path_of(query, value, similarity) == path
    assert paths.choose_mixture_path('eager', query, value, similarity) == 'eager'
    for queries, keys in ((0, 99), (1, 99), (99, 1)):
        assert path_of(query[:, :, :queries], value[:, :keys],
                       similarity) == 'chunked'


def test_unmeasured_devices_take_chunks():
    query, value = torch.empty(1, 2, 9, 8), torch.empty(1, 9, 8)
    assert path_of(query.to('meta'), value.to('meta')) == 'chunked'
    assert path_of(query, value) == 'eager'


@both_similarities
@pytest.mark.parametrize('needs_grad', [False, True])
def test_small_maps_are_eager_on_a_cpu(similarity, needs_grad):
    """As many scores as the table allows, of all images and parts."""
    most = paths.EAGER_MAX_SCORES['cpu', similarity][needs_grad]
    batch, parts, keys = 2, 4, 64
    queries = most // (batch * parts * keys)
    for more, path in ((0, 'eager'), (1, 'chunked')):
        query = torch.empty(batch, parts, queries + more, 8)
        value = torch.empty(batch, keys, 8, requires_grad=needs_grad)
        assert path_of(query, value, similarity) == path
        with torch.no_grad():
            assert path_of(query, value, similarity) == (
                'chunked' if needs_grad else path)


@both_similarities
def test_eager_scores_stay_well_within_the_budget(similarity, score_budget):
    inputs = attention_operands(batch=1, parts=2, lq=60, lk=50)
    for scores, held in ((3 * 6000, 6000), (3 * 6000 - 1, 2 * 3000)):
        score_budget(scores)
        with Recorder() as recorder:
            run(mixture_attention, inputs, similarity=similarity)
        assert recorder.largest <= held
        assert (recorder.softmaxes == 0) == (scores == 3 * 6000)
    assert all(most * paths.EAGER_COPIES <= 1 << 23
               for most in paths.EAGER_MAX_SCORES['cpu', similarity])


def test_gradients_under_autocast_take_chunks():
    """A backward pass inside autocast would round plain operators."""
    query = torch.empty(1, 2, 9, 8, requires_grad=True)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert path_of(query, torch.empty(1, 9, 8)) == 'chunked'
        with torch.no_grad():
            assert path_of(query, torch.empty(1, 9, 8)) == 'eager'


def test_unknown_path(monkeypatch):
    inputs = attention_operands()
    with pytest.raises(ValueError, match="path must be one of .* got 'fast'"):
        mixture_attention(*inputs, path='fast')
    monkeypatch.setenv('FPT_ATTENTION', 'fast')
    with pytest.raises(ValueError, match="FPT_ATTENTION must be .* 'fast'"):
        mixture_attention(*inputs)


def test_fused_distance_in_float16_is_an_error():
    inputs = attention_operands(dtype=torch.float16)
    with pytest.raises(ValueError, match='float16'):
        mixture_attention(*inputs, similarity='neg_euclid', path='fused')


@both_similarities
@pytest.mark.parametrize('spread, mean', [(1, 0), (5, 0), (5, 2), (1, 100)])
def test_fused_in_bfloat16_rounds_keys_once(similarity, spread, mean):
    """Peaked attention amplifies rounding errors; a large mean hides digits."""
    torch.manual_seed(0)
    query, key = (torch.randn(1, 2, 70, 32) * spread + mean for _ in range(2))
    value = torch.randn(1, 70, 32)
    operands = [x.bfloat16() for x in (query, key, value)]
    operands.append(torch.tensor([[0.4, 0.6]]))
    want = reference.mixture_attention(
        *(x.double() for x in operands), similarity=similarity)
    got = mixture_attention(*operands, similarity=similarity, path='fused')
    assert got.dtype == torch.bfloat16
    assert relative_error(got, want) <= (0.006 if mean < 4 * spread else 0.02)


def test_paths_on_a_torch_without_is_compiling(monkeypatch):
    """torch 2.1 and 2.2."""
    monkeypatch.setattr(checks, 'torch', SimpleNamespace(
        compiler=SimpleNamespace(), _dynamo=torch._dynamo))
    assert checks.is_compiled() is False
