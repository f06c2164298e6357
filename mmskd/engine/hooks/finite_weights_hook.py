"""A run whose weights are no numbers any more is stopped, not saved."""
from mmengine.hooks import Hook

from mmskd.checkpoint import last_checkpoint
from mmskd.errors import RunStopped, UsageError
from mmskd.models.finite import first_not_finite
from mmskd.registry import HOOKS

from .teaching_hook import unwrapped


@HOOKS.register_module()
class FiniteWeightsHook(Hook):
    """Stops a training in the iteration in which a weight becomes NaN or infinite.

    MMEngine goes on: it trains NaN to the end, and its checkpoints take the place of the good ones.
    Here the run ends before the next checkpoint is saved, with the iteration, the first such layer,
    and the last good checkpoint. A gradient scaler that skips a step (float16) leaves the weights
    finite.

    ``tools/train.py`` adds the hook, unless it is told to ``--keep-going``. With other tools::

        custom_hooks = [dict(type='mmskd.FiniteWeightsHook')]

    Raises:
        RunStopped: After the iteration.
        UsageError: Before the first one, if the weights that the run begins with are not finite.
    """

    priority = 'ABOVE_NORMAL'  # before what averages the weights, and what saves them

    def before_train(self, runner) -> None:
        """Look at the weights that the run begins with."""
        bad = first_not_finite(unwrapped(runner.model))
        if bad:
            source = f' of {runner._load_from}' if runner._load_from else ''
            raise UsageError(
                f'the weights{source} to begin with are not finite: {bad} holds NaN or infinity. '
                'Take a checkpoint from before it broke down')

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Look at the weights that the step has made."""
        bad = first_not_finite(unwrapped(runner.model))
        if bad is None:
            return
        good = last_checkpoint(runner.work_dir)
        kept = f'the last good checkpoint is {good}' if good else 'no checkpoint was saved so far'
        raise RunStopped(
            f'iteration {runner.iter + 1} (epoch {runner.epoch + 1}) has made NaN or infinity of '
            f'the weights, first in {bad}; {kept}. Lower the learning rate '
            '(optim_wrapper.optimizer.lr) or clip the gradients (optim_wrapper.clip_grad); '
            '--keep-going trains on')
