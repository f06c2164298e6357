"""Checkpoints that survive a kill: the old one goes when the new one is on the disk."""
import os
from collections import deque
from typing import List

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop

from mmskd.checkpoint.saving import SafeLocalBackend, remove_unfinished, write_whole
from mmskd.registry import HOOKS


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, with its options, but no moment without a whole checkpoint.

    The original deletes the oldest checkpoint, then writes the new one under its final name; a kill
    in between, with ``max_keep_ckpts=1``, leaves nothing to resume from. Here the new one is written
    under another name in the same folder, flushed to the disk and renamed; then ``last_checkpoint``
    names it; then the oldest one goes. The same holds for the best one (``save_best``). So there must
    be room for one checkpoint more than ``max_keep_ckpts``.

    MMEngine validates after the checkpoint is saved, and resumes with the next epoch: a validation in
    which the run was killed is lost, with the best checkpoint or the final result that it would have
    given. Here the resumed run does it first. The file ``last_validation`` in the work dir holds the
    iteration of the last one that was finished.

    ``tools/train.py`` puts the hook in the place of CheckpointHook. With other tools::

        default_hooks = dict(checkpoint=dict(type='mmskd.SafeCheckpointHook', interval=1))

    On a storage that is no local folder (``out_dir`` of another prefix, ``backend_args``) only the
    order holds: what is there is deleted last.

    Raises:
        DiskFullError: While saving, if there is no room; names the file, what is free and needed.
    """

    def before_train(self, runner) -> None:
        """As the original; then delete what a killed run left half written, and validate if it owes it."""
        folder = self.out_dir or runner.work_dir
        chosen = (self.backend_args or {}).get('backend', 'local')
        if self.file_client_args is None and chosen == 'local' and isinstance(
                get_file_backend(folder), LocalBackend):
            self.backend_args = dict(backend='mmskd_local')
        super().before_train(runner)
        self._outdated: List[str] = []
        self._validation_file = os.path.join(runner.work_dir, 'last_validation')
        if self._is_safe and is_main_process():
            remove_unfinished(self.out_dir)
        if runner.iter == 0:
            self._note_validation(0)
        elif self._owes_validation(runner):
            runner.logger.info('The validation in which the run was stopped is done first')
            self._take_up_last_checkpoint(runner)
            runner.val_loop.run()

    @property
    def _is_safe(self) -> bool:
        return isinstance(self.file_backend, SafeLocalBackend)

    # ------------------------------------------------------------------ validation

    def after_val_epoch(self, runner, metrics: dict) -> None:
        """As the original, and remember that the validation is done."""
        super().after_val_epoch(runner, metrics)
        self._note_validation(runner.iter)

    def _note_validation(self, iteration: int) -> None:
        if is_main_process():
            write_whole(str(iteration).encode(), self._validation_file)

    def _owes_validation(self, runner) -> bool:
        """Whether the loop would have validated at the place that it is resumed from, and has not."""
        loop = runner.train_loop
        if runner.val_loop is None:
            return False
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        done, end = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
        loop._decide_current_val_interval()
        due = done >= loop.val_begin and (done % loop.val_interval == 0 or done == end)
        place = done * len(loop.dataloader) if by_epoch else done
        answer = [due and place == loop.iter and self._last_validation() < place]
        broadcast_object_list(answer)  # the file may be on the machine of the first process alone
        return answer[0]

    def _last_validation(self) -> float:
        try:
            with open(self._validation_file) as file:
                return int(file.read())
        except (OSError, ValueError):
            return float('inf')  # another hook saved: who knows

    def _take_up_last_checkpoint(self, runner) -> None:
        """The original forgets it when it is resumed, and then saves no new best score in it."""
        step = runner.epoch if self.by_epoch else runner.iter
        path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))
        if self.file_backend.isfile(path):
            self.last_ckpt = path

    # ------------------------------------------------------------------ saving

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
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
        if not self._is_safe:
            super()._save_best_checkpoint(runner, metrics)
            return
        with self.file_backend.removing_later() as self._outdated:
            super()._save_best_checkpoint(runner, metrics)
        self._remove_outdated()

    def _remove_outdated(self) -> None:
        """Delete what was the best one, now that the new one is there.

        Before the last checkpoint, which names the new one, is saved again: a run that is killed until then
        validates again, and finds it again.
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
