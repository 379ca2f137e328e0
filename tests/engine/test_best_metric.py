"""save_best must name an existing metric."""

from types import SimpleNamespace

import pytest
import torch
from helpers.toy_runs import train
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS

from fpt_plugin.engine.best_metric import check_save_best, result_names
from fpt_plugin.engine.whole_checkpoint import _metrics

WHOLE = 'fpt_plugin.WholeCheckpointHook'


def metric(kind, **settings):
    with METRICS.switch_scope_and_registry(kind.partition('.')[0]):
        return METRICS.build(dict(type=kind, **settings))


COCO = dict(kind='mmdet.CocoMetric', ann_file=None)


@pytest.mark.parametrize('settings, right, wrong', [
    (COCO, ['coco/bbox_mAP', 'coco/bbox_mAP_50'], 'coco/bbox_AP'),
    (COCO, ['auto'], 'bbox_mAP'),
    (COCO, [], 'coco/segm_mAP'),
    (dict(COCO, metric=['bbox', 'segm']), ['coco/segm_mAP'], 'coco/bbox_mAP_95'),
    (dict(COCO, prefix='val'), ['val/bbox_mAP'], 'coco/bbox_mAP'),
    (dict(COCO, metric='proposal'), ['coco/AR@1000'], 'coco/bbox_mAP'),
    (dict(COCO, metric='proposal_fast'), ['coco/AR@300'], 'coco/AR@2'),
    (dict(COCO, metric_items=['mAP']), ['coco/bbox_mAP'], 'coco/bbox_mAP_50'),
    (dict(COCO, classwise=True), ['coco/cat_precision'], 'coco/cat_mAP'),
    (dict(kind='mmdet.VOCMetric', iou_thrs=[0.5, 0.75]),
     ['pascal_voc/mAP', 'pascal_voc/AP75'], 'pascal_voc/AP60'),
    (dict(kind='mmseg.IoUMetric'), ['mIoU', 'aAcc', 'mAcc'], 'mDice'),
    (dict(kind='mmseg.IoUMetric', iou_metrics=['mDice', 'mFscore']),
     ['mDice', 'mPrecision'], 'mIoU'),
])
def test_names_of_the_results_of_each_metric(settings, right, wrong):
    pytest.importorskip(settings['kind'].partition('.')[0])
    metrics = [metric(**settings)]
    check_save_best(right, metrics)
    with pytest.raises(ValueError, match=f"got '{wrong}': there are ") as caught:
        check_save_best([*right, wrong], metrics)
    assert all(name in str(caught.value) for name in result_names(metrics[0]))
    # The names of a user's metric are not known.
    check_save_best([wrong], [*metrics, object()])


def test_the_names_are_those_of_the_results():
    """For IoUMetric, which needs no files."""
    pytest.importorskip('mmseg')
    for kinds in (['mIoU'], ['mDice'], ['mFscore'], ['mIoU', 'mFscore']):
        iou = metric('mmseg.IoUMetric', iou_metrics=kinds)
        iou.dataset_meta = dict(classes=('a', 'b'))
        iou.results = [iou.intersect_and_union(
            torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), 2, 255)]
        assert set(iou.evaluate(1)) == set(result_names(iou))


@pytest.mark.parametrize('known', [True, False])
@pytest.mark.parametrize('save_best', ['mIoU', ['acc', 'mAP'], ['accuracy']])
def test_the_existing_metrics_are_listed(known, save_best, tmp_path, monkeypatch):
    """Before the training if their names are known."""
    if known:
        monkeypatch.setattr('fpt_plugin.engine.best_metric.result_names',
                            lambda metric: ['acc', 'loss'])
    wrong = save_best if isinstance(save_best, str) else save_best[-1]
    with pytest.raises(ValueError, match=f"got '{wrong}': there are acc, loss"):
        train(tmp_path, checkpoint=dict(type=WHOLE, save_best=save_best,
                                        rule='greater'), scores=[1., 2., 3.])
    assert (tmp_path / 'epoch_1.pth').exists() != known


def test_a_metric_without_a_result(tmp_path, monkeypatch):
    """Like mmdet's if there are no predictions."""
    for place in ('best_metric', 'whole_checkpoint'):
        monkeypatch.setattr(f'fpt_plugin.engine.{place}.result_names',
                            lambda metric: ['acc', 'loss', 'mAP'])
    train(tmp_path, checkpoint=dict(type=WHOLE, save_best='mAP'),
          scores=[1., 2., 3.])
    assert (tmp_path / 'epoch_3.pth').exists()
    assert not list(tmp_path.glob('best*'))


def test_an_evaluator_that_renames_metrics():
    """mmdet's MultiDatasetsEvaluator adds the names of datasets."""
    pytest.importorskip('mmdet')
    from mmdet.evaluation import MultiDatasetsEvaluator
    metrics = [metric(**COCO), metric(**COCO)]
    for evaluator, known in (
            (Evaluator(metrics), metrics),
            (MultiDatasetsEvaluator(metrics, dataset_prefixes=['a', 'b']), [])):
        runner = SimpleNamespace(_val_loop=SimpleNamespace(evaluator=evaluator))
        assert _metrics(runner) == known
    check_save_best(['a/coco/bbox_mAP'], [])
