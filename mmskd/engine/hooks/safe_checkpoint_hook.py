"""Checkpoints that survive a kill: the old one goes when the new one is on the disk."""
import os
from collections import deque
from typing import List, Optional

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop

from mmskd.checkpoint.saving import SafeLocalBackend, remove_unfinished, write_whole
from mmskd.registry import HOOKS

from ..taught_by import compare
from .teaching_hook import note_teachers, teaching_hooks

VALIDATED = 'last_validation'  # in MMEngine's message hub: the iteration after which it was


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, with its options, but no moment without a whole checkpoint.

    The original deletes the oldest checkpoint, then writes the new one under its final name; a kill
    in between, with ``max_keep_ckpts=1``, leaves nothing to resume from. Here the new one is
    written under another name in the same folder, flushed to the disk and renamed; then
    ``last_checkpoint`` names it; then the oldest one goes. The same holds for the best one
    (``save_best``). So there must be room for one checkpoint more than ``max_keep_ckpts``.

    MMEngine validates after the checkpoint is saved, and resumes with the next epoch: a validation
    in which the run was killed is lost, with the best checkpoint or the final result that it would
    have given, and one that was finished is forgotten by the logs, and by a scheduler that watches
    it. Here the checkpoint is saved again after its validation, and a resumed run first does one
    that it owes.

    ``tools/train.py`` puts the hook in the place of CheckpointHook. With other tools::

        default_hooks = dict(checkpoint=dict(type='mmskd.SafeCheckpointHook', interval=1))

    On a storage that is no local folder (``out_dir`` of another prefix, ``backend_args``) only the
    order holds: what is there is deleted last.

    Raises:
        DiskFullError: While saving, if there is no room; names the file, what is free and needed.
    """

    backend_args: Optional[dict]

    def before_train(self, runner) -> None:
        """As the original; then delete what a killed run left half written, and validate if due."""
        folder = self.out_dir or runner.work_dir
        chosen = (self.backend_args or {}).get('backend', 'local')
        if self.file_client_args is None and chosen == 'local' and isinstance(
                get_file_backend(folder), LocalBackend):
            self.backend_args = dict(backend='mmskd_local')
        super().before_train(runner)
        self._outdated: List[str] = []
        if self._is_safe and is_main_process():
            remove_unfinished(self.out_dir)
        if runner.iter == 0:
            runner.message_hub.update_info(VALIDATED, 0)
        elif self._owes_validation(runner):
            runner.logger.info('The validation in which the run was stopped is done first')
            self.last_ckpt = self._path(runner)
            # As if the last step had just been done: MMEngine has set these to the one that is next
            runner.message_hub.update_info('iter', runner.iter - 1)
            if isinstance(runner.train_loop, EpochBasedTrainLoop):
                runner.message_hub.update_info('epoch', runner.epoch - 1)
            runner.val_loop.run()

    @property
    def _is_safe(self) -> bool:
        return isinstance(self.file_backend, SafeLocalBackend)

    # ------------------------------------------------------------------ validation

    def after_val_epoch(self, runner, metrics: dict) -> None:
        """As the original; and save the checkpoint before the validation with what it has found."""
        runner.message_hub.update_info(VALIDATED, runner.iter)
        self._saved_again = False
        super().after_val_epoch(runner, metrics)
        if not self._saved_again and self.last_ckpt and self.last_ckpt == self._path(runner):
            self._save_checkpoint_with_step(
                runner, self._step(runner), meta=dict(epoch=runner.epoch, iter=runner.iter))

    def _owes_validation(self, runner) -> bool:
        """Whether the loop would have validated where it is resumed from, and has not."""
        loop = runner.train_loop
        validated = runner.message_hub.runtime_info.get(VALIDATED)
        if runner.val_loop is None or validated is None:  # another hook saved: who knows
            return False
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        done, end = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
        loop._decide_current_val_interval()
        due = done >= loop.val_begin and (done % loop.val_interval == 0 or done == end)
        place = done * len(loop.dataloader) if by_epoch else done
        return due and place == loop.iter and validated < place

    def _step(self, runner) -> int:
        """The number of the checkpoint of what is done, between two epochs (iterations)."""
        return runner.epoch if self.by_epoch else runner.iter

    def _path(self, runner) -> str:
        return self.file_backend.join_path(self.out_dir,
                                           self.filename_tmpl.format(self._step(runner)))

    # ------------------------------------------------------------------ what taught the run

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Write down what the run is taught by; nothing, if there is no hook that teaches."""
        note_teachers(runner, checkpoint)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Compare it, where a run is resumed."""
        if runner._resume:
            compare(runner, checkpoint, teaching_hooks(runner))

    # ------------------------------------------------------------------ saving

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        self._saved_again = True
        self._remove_outdated()
        kept = self._kept_with(step)
        if kept:  # those that are there when it is saved; a resumed run deletes the oldest
            runner.message_hub.update_info('keep_ckpt_ids', kept)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir, name, self.file_client_args, save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler, meta=meta, by_epoch=self.by_epoch,
            backend_args=self.backend_args, **self.args)
        if is_main_process():
            write_whole(self.last_ckpt.encode(), os.path.join(runner.work_dir, 'last_checkpoint'))
        if kept:
            self._keep_newest(kept)

    def _kept_with(self, step: int) -> list:
        """The numbers of the checkpoints that are kept, this one the last; none if all are."""
        if self.max_keep_ckpts <= 0:
            return []
        kept = list(self.keep_ckpt_ids)
        return kept if kept[-1:] == [step] else kept + [step]

    def _keep_newest(self, kept: list) -> None:
        self.keep_ckpt_ids = deque(kept[-self.max_keep_ckpts:], self.max_keep_ckpts)
        if not is_main_process():
            return
        for step in kept[:-self.max_keep_ckpts]:
            path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # of DeepSpeed
                self.file_backend.rmtree(path)

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        missing = [key for key in self.save_best or () if key != 'auto' and key not in metrics]
        if missing:  # a metric may have nothing to say, as COCO's without detections
            runner.logger.warning(
                f'save_best: this validation has no {missing[0]}, so no best checkpoint is '
                f'saved; it has {", ".join(metrics)}')
            return
        if not self._is_safe:
            super()._save_best_checkpoint(runner, metrics)
            return
        with self.file_backend.removing_later() as self._outdated:
            super()._save_best_checkpoint(runner, metrics)
        self._remove_outdated()

    def _remove_outdated(self) -> None:
        """Delete what was the best one, now that the new one is there.

        Before the last checkpoint, which names the new one, is saved again: a run that is killed
        until then validates again, and finds it again.
        """
        outdated, self._outdated[:] = list(self._outdated), []
        for path in outdated:
            # A validation that is done again writes the best one under the same name
            if path not in self._best_ones() and os.path.isfile(path):
                os.remove(path)

    def _best_ones(self) -> List[str]:
        if len(self.key_indicators) == 1:
            return [self.best_ckpt_path]
        return list(self.best_ckpt_path_dict.values())
