"""Save checkpoints so that a killed training always leaves a complete one."""

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
from .best_metric import check_save_best, result_names, unknown_metric_message

BACKEND = 'fpt_plugin_whole'  # its name in mmengine's registry


class WholeFileBackend(LocalBackend):
    """Writes local files under a temporary name and then renames them."""

    def put(self, obj: bytes, filepath) -> None:
        """Write a file.

        Raises:
            OSError: It could not be written. An existing file of this name is
                unchanged.
        """
        try:
            write_bytes(filepath, obj)
        except OSError as error:
            raise OSError(
                error.errno, f'{error.strerror}; it was not written, earlier '
                'checkpoints are unchanged', str(filepath)) from error


register_backend(BACKEND, WholeFileBackend, force=True)


@register(HOOKS)
class WholeCheckpointHook(CheckpointHook):
    """Saves like mmengine's CheckpointHook, but deletes old files last.

    mmengine deletes outdated checkpoints first and then writes the new one under
    its final name. With ``max_keep_ckpts=1``, a training that is killed in
    between or fills the disk loses everything. This hook writes a checkpoint
    and ``last_checkpoint`` under temporary names, renames them, and only then
    deletes old ones. For a moment there is one more than ``max_keep_ckpts``.
    tools/train.py replaces mmengine's hook by this one; elsewhere write
    ``default_hooks=dict(checkpoint=dict(type='fpt_plugin.WholeCheckpointHook'))``.

    Arguments and file names are mmengine's. Files in other storage
    (``backend_args``, ``out_dir='s3://...'``), checkpoints of a FlexibleRunner
    and the final file of ``published_keys`` are written by mmengine's code, in
    this hook's order.

    The first file is opened again. If torch would reject it, such as for an
    array of strings in the dataset's metainfo, a warning comes early. A
    ``save_best`` that names no metric raises an error; before the training if
    the metrics are mmdet's CocoMetric or VOCMetric or mmseg's IoUMetric.
    """

    _first_file_checked = False

    def before_train(self, runner) -> None:
        """Choose the file backend, then continue like mmengine."""
        if self.file_client_args == dict(backend='disk'):
            self.file_client_args = None  # the former name of local files
        folder = str(self.out_dir or runner.work_dir)
        if self.file_client_args is None and '://' not in folder and \
                self.backend_args in (None, {}, dict(backend='local')):
            self.backend_args = dict(backend=BACKEND)
        super().before_train(runner)
        if self.save_best:
            check_save_best(self.save_best, _metrics(runner))

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        """Save like mmengine, but write first and delete last."""
        outdated = []
        # After a validation the checkpoint of the same step is written again.
        if self.max_keep_ckpts > 0 and step not in list(self.keep_ckpt_ids)[-1:]:
            existing = [*self.keep_ckpt_ids, step]
            outdated = existing[:-self.max_keep_ckpts]
            self.keep_ckpt_ids.append(step)
            # The checkpoint lists the outdated ones too: if the training is
            # killed before it deletes them, the resumed one does.
            runner.message_hub.update_info('keep_ckpt_ids', existing)
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
            if not self._first_file_checked and osp.isfile(self.last_ckpt):
                self._first_file_checked = True
                warn_if_unreadable(self.last_ckpt)
            for old in outdated:
                self._delete(self.file_backend.join_path(
                    self.out_dir, self.filename_tmpl.format(old)))
        if self.max_keep_ckpts > 0:
            runner.message_hub.update_info('keep_ckpt_ids',
                                           list(self.keep_ckpt_ids))

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        """Save like mmengine, but delete the former best checkpoint last.

        ``runner.val()`` without a training saves nothing.

        Raises:
            ValueError: The metrics have other names than ``save_best``.
        """
        files = getattr(self, 'file_backend', None)  # set by before_train
        if not self.save_best or files is None:
            return
        missing = [key for key in self.key_indicators
                   if key != 'auto' and key not in metrics]
        expected = {name for metric in _metrics(runner)
                    for name in result_names(metric) or ()}
        if missing and not expected.issuperset(missing):
            raise ValueError(unknown_metric_message(missing, metrics))
        if missing:  # for example because there were no predictions
            runner.logger.warning(f'no best checkpoint is saved: {missing} could '
                                  'not be computed')
            return
        self.file_backend = _DeferredDeletion(files)
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
    """Warn if a training could not resume from a checkpoint.

    The tensors are not read if the file system supports mmap.
    """
    if not loads_safely():  # torch would execute the file's pickle
        return
    try:
        peek(path)
    except UnpicklingError as error:
        reason = str(error).rpartition('WeightsUnpickler error:')[2].strip()
        warnings.warn(
            f'{path} holds objects that torch.load rejects as unsafe, so no '
            f'training can resume from it ({reason.partition(". ")[0]}): use '
            'only plain numbers, strings and lists in the metainfo of datasets '
            'and in the state of hooks', stacklevel=2)
    except Exception as error:  # a check must not stop a training
        warnings.warn(f'{path} could not be opened again ({describe(error)})',
                      stacklevel=2)


def _metrics(runner) -> list:
    """Return the metrics of the validation, or none for other evaluators.

    mmdet's MultiDatasetsEvaluator adds names of datasets to the results.
    """
    evaluator = getattr(getattr(runner, '_val_loop', None), 'evaluator', None)
    return evaluator.metrics if type(evaluator) is Evaluator else []


class _DeferredDeletion:
    """A file backend that lists files instead of deleting them."""

    def __init__(self, files) -> None:
        self.files = files
        self.outdated: list[str] = []

    def __getattr__(self, name: str):
        return getattr(self.files, name)

    def remove(self, path: str) -> None:
        self.outdated.append(path)

    rmtree = remove
