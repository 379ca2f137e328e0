"""Checkpoints that are whole, whenever the training is killed."""

from __future__ import annotations

import os.path as osp
import warnings
from pickle import UnpicklingError

from mmengine.dist import is_main_process
from mmengine.evaluator import Evaluator
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from ..io.checkpoints import loads_safely, peek
from ..io.files import write_bytes
from ..openmmlab.models import describe
from ..openmmlab.registry import register
from .best_metric import check_save_best, names_of, refusal

BACKEND = 'fpt_plugin_whole'  # its name among mmengine's


class WholeFileBackend(LocalBackend):
    """Local files that take their names when they are whole."""

    def put(self, obj: bytes, filepath) -> None:
        """Write a file.

        Raises:
            OSError: It could not be written, and what had its name is still
                there.
        """
        try:
            write_bytes(filepath, obj)
        except OSError as error:
            raise OSError(
                error.errno, f'{error.strerror}; it was not written, earlier '
                'checkpoints are as they were', str(filepath)) from error


register_backend(BACKEND, WholeFileBackend, force=True)


@register(HOOKS)
class WholeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, in an order that survives a kill.

    mmengine deletes the checkpoints that are too old, then writes the new one
    under its final name: with ``max_keep_ckpts=1`` a training that is killed
    in between, or finds the disk full, has lost everything. Here a checkpoint
    is written beside its name and then renamed, ``last_checkpoint`` likewise,
    and only then old ones are deleted. So for a moment there is one more than
    ``max_keep_ckpts``. tools/train.py takes this hook wherever the config has
    mmengine's; elsewhere it is
    ``default_hooks=dict(checkpoint=dict(type='fpt_plugin.WholeCheckpointHook'))``.

    Arguments and file names are mmengine's. Other storage than local files
    (``backend_args``, ``out_dir='s3://...'``), the checkpoints of a
    FlexibleRunner and what ``published_keys`` writes at the very end are
    written as mmengine does it; the order is this hook's for all of them.

    The first file is opened again: what torch would refuse to read, as an array
    of strings in the dataset's metainfo, is warned about while little is lost.
    A ``save_best`` that names no metric is refused, before the training where
    the metrics are mmdet's CocoMetric or VOCMetric or mmseg's IoUMetric.
    """

    _opened = False  # whether the first file was

    def before_train(self, runner) -> None:
        """Choose how files are written, then as mmengine."""
        if self.file_client_args == dict(backend='disk'):
            self.file_client_args = None  # what local files used to be called
        folder = str(self.out_dir or runner.work_dir)
        if self.file_client_args is None and '://' not in folder and \
                self.backend_args in (None, {}, dict(backend='local')):
            self.backend_args = dict(backend=BACKEND)
        super().before_train(runner)
        if self.save_best:
            check_save_best(self.save_best, _metrics(runner))

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        """As mmengine's, but writes first and deletes last."""
        outdated = []
        # After a validation the checkpoint of the same step is written again.
        if self.max_keep_ckpts > 0 and step not in list(self.keep_ckpt_ids)[-1:]:
            there = [*self.keep_ckpt_ids, step]
            outdated = there[:-self.max_keep_ckpts]
            self.keep_ckpt_ids.append(step)
            # Until they are deleted the checkpoint names them: a training that
            # goes on from it deletes what it finds.
            runner.message_hub.update_info('keep_ckpt_ids', there)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args)
        if is_main_process():
            WholeFileBackend().put(
                str(self.last_ckpt).encode(),
                osp.join(runner.work_dir, 'last_checkpoint'))
            if not self._opened and osp.isfile(self.last_ckpt):
                self._opened = True
                warn_if_unreadable(self.last_ckpt)
            for old in outdated:
                self._delete(self.file_backend.join_path(
                    self.out_dir, self.filename_tmpl.format(old)))
        if self.max_keep_ckpts > 0:
            runner.message_hub.update_info('keep_ckpt_ids',
                                           list(self.keep_ckpt_ids))

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        """As mmengine's, but what was best is deleted last.

        Nothing is saved where nothing is trained: ``runner.val()`` alone.

        Raises:
            ValueError: The metrics have other names than ``save_best``.
        """
        files = getattr(self, 'file_backend', None)  # of before_train
        if not self.save_best or files is None:
            return
        missing = [key for key in self.key_indicators
                   if key != 'auto' and key not in metrics]
        expected = {name for metric in _metrics(runner)
                    for name in names_of(metric) or ()}
        if missing and not expected.issuperset(missing):
            raise ValueError(refusal(missing, metrics))
        if missing:  # as where nothing at all was predicted
            runner.logger.warning(f'no best checkpoint is saved: {missing} could '
                                  'not be computed')
            return
        self.file_backend = _DeletesLater(files)
        try:
            super()._save_best_checkpoint(runner, metrics)
            outdated = self.file_backend.outdated
        finally:
            self.file_backend = files
        best = [getattr(self, 'best_ckpt_path', None),
                *getattr(self, 'best_ckpt_path_dict', {}).values()]
        for path in outdated:
            if path not in best:
                self._delete(path)

    def _delete(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # DeepSpeed's
            self.file_backend.rmtree(path)


def warn_if_unreadable(path: str) -> None:
    """Say so if a training could not go on from a checkpoint.

    Its tensors are not read, where the file system allows it.
    """
    if not loads_safely():  # torch reads by running what is there
        return
    try:
        peek(path)
    except UnpicklingError as error:
        reason = str(error).rpartition('WeightsUnpickler error:')[2].strip()
        warnings.warn(
            f'{path} holds what torch.load refuses to read safely, so that no '
            f'training goes on from it ({reason.partition(". ")[0]}): keep '
            'plain numbers, strings and lists in the metainfo of datasets and '
            'in what hooks save', stacklevel=2)
    except Exception as error:  # a check must not end a training
        warnings.warn(f'{path} could not be opened again ({describe(error)})',
                      stacklevel=2)


def _metrics(runner) -> list:
    """Those of the validation; none where there are none or others are named.

    mmdet's MultiDatasetsEvaluator puts the names of datasets before theirs.
    """
    evaluator = getattr(getattr(runner, '_val_loop', None), 'evaluator', None)
    return evaluator.metrics if type(evaluator) is Evaluator else []


class _DeletesLater:
    """A file backend that notes what is to be deleted."""

    def __init__(self, files) -> None:
        self.files = files
        self.outdated: list[str] = []

    def __getattr__(self, name: str):
        return getattr(self.files, name)

    def remove(self, path: str) -> None:
        self.outdated.append(path)

    rmtree = remove
