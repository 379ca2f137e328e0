"""Check the metric names by which the best checkpoint is chosen."""

from __future__ import annotations

from collections.abc import Iterable

# Results of mmdet's CocoMetric for boxes or masks, and for proposals.
COCO = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
PROPOSALS = ('AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000')
# Results of mmseg's IoUMetric, in addition to aAcc.
IOU = dict(mIoU=('mIoU', 'mAcc'), mDice=('mDice', 'mAcc'),
           mFscore=('mFscore', 'mPrecision', 'mRecall'))


def check_save_best(keys: Iterable[str], metrics: Iterable[object]) -> None:
    """Reject names that the validation does not compute.

    Args:
        keys: ``save_best`` of a CheckpointHook.
        metrics: Metrics of the evaluator. If the results of one of them are
            not known in advance, every name is accepted.

    Raises:
        ValueError: A name is wrong; the message lists the existing names.
    """
    found = [result_names(metric) for metric in metrics]
    if not found or None in found:
        return
    names = [name for group in found for name in group]
    # With classwise=True there is a precision for each class.
    wrong = [key for key in keys if key != 'auto' and key not in names
             and not key.endswith('_precision')]
    if wrong:
        raise ValueError(unknown_metric_message(wrong, names))


def unknown_metric_message(wrong: Iterable[str], names: Iterable[str]) -> str:
    """Return the message that lists wrong and existing names."""
    return ('save_best must name metrics of the val_evaluator, got '
            f'{", ".join(map(repr, wrong))}: there are {", ".join(names) or "none"}')


def result_names(metric: object) -> list[str] | None:
    """Return the names of a metric's results; None if they are not known."""
    kind = type(metric).__name__
    if type(metric).__module__.partition('.')[0] not in ('mmdet', 'mmseg'):
        return None
    if kind == 'CocoMetric':
        names = [name for part in metric.metrics for name in _coco(metric, part)]
    elif kind == 'VOCMetric' and metric.metric == 'mAP':
        names = ['mAP', *(f'AP{int(iou * 100):02d}' for iou in metric.iou_thrs)]
    elif kind == 'IoUMetric':
        chosen = [metric.metrics] if isinstance(metric.metrics, str) \
            else metric.metrics
        names = ['aAcc', *(name for part in chosen for name in IOU.get(part, ()))]
    else:
        return None
    if getattr(metric, 'format_only', False):
        return []
    prefix = f'{metric.prefix}/' if metric.prefix else ''
    return list(dict.fromkeys(prefix + name for name in names))


def _coco(metric: object, part: str) -> list[str]:
    if part == 'proposal_fast':
        return [f'AR@{number}' for number in metric.proposal_nums]
    if part == 'proposal':
        return list(metric.metric_items or PROPOSALS)
    return [f'{part}_{item}' for item in metric.metric_items or COCO]
