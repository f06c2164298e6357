"""The best model of a run so far, by the validations that the run does anyway."""
import difflib
import logging
from typing import Any, Dict, Optional

from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop
from torch import nn

from mmskd.errors import UsageError

from .teaching_hook import unwrapped


class BestValidated:
    """Which model CheckpointHook's ``save_best`` holds to be the best.

    Of several metrics the first counts. It reads the score that CheckpointHook keeps in MMEngine's
    message hub, by its rule, and with which a resumed run goes on.

    Args:
        runner (Runner): In ``before_run`` or later.

    Attributes:
        metric (str): By which it is the best; 'auto' is the first of the first validation.
        first (int): After how many epochs (iterations) the first validation is due.

    Raises:
        UsageError: If the run does not validate, or does not look for the best.
    """

    def __init__(self, runner):
        loop = runner.train_loop
        if runner.val_loop is None:
            raise UsageError(
                "past='best' needs a validation to know the best by: set val_dataloader, "
                'val_evaluator and val_cfg (and leave out --no-validate), or choose '
                'another `past`')
        saving = next((hook for hook in runner.hooks
                       if isinstance(hook, CheckpointHook) and hook.save_best), None)
        if saving is None:
            raise UsageError(
                "past='best' needs a metric to know the best by: set "
                "default_hooks.checkpoint.save_best (as 'coco/bbox_mAP' or 'auto'), or "
                'choose another `past`')
        self.metric = saving.key_indicators[0]
        self._key = 'best_score' if len(saving.key_indicators) == 1 else f'best_score_{self.metric}'
        self._runner = runner
        due = -(-max(loop.val_begin, 1) // loop.val_interval) * loop.val_interval
        # An iteration-based loop has max_epochs, too: 1
        self.first = min(due, loop.max_iters
                         if isinstance(loop, IterBasedTrainLoop) else loop.max_epochs)
        self._taken = self._score

    @property
    def is_new(self) -> bool:
        """bool: Whether the model at hand is the best, and was not taken yet."""
        return self._score != self._taken

    def check(self, metrics: Dict[str, Any]) -> None:
        """Look at what a validation has found; all may be missing, as COCO's without detections.

        Raises:
            UsageError: If the metric has another name.
        """
        if self.metric == 'auto' or self.metric in metrics or self._score is not None:
            return
        similar = difflib.get_close_matches(self.metric, metrics, n=1, cutoff=0.7)
        if similar:
            raise UsageError(
                f"past='best': no validation gives {self.metric}; did you mean {similar[0]}? Set "
                'default_hooks.checkpoint.save_best to it')
        print_log(
            f"PS-KD: this validation has no {self.metric}, by which past='best' is to know the "
            'best model, so nothing is softened yet; it has '
            f'{", ".join(metrics) or "nothing at all"}', 'current', logging.WARNING)

    @property
    def model(self) -> nn.Module:
        """nn.Module: Which is validated, between two training steps.

        EMAHook's, where it averages.
        """
        ema = next((hook for hook in self._runner.hooks if isinstance(hook, EMAHook)), None)
        return unwrapped(self._runner.model) if ema is None else ema.ema_model.module

    def take(self) -> Optional[nn.Module]:
        """The best model, if it is new: no longer from here on."""
        is_new, self._taken = self.is_new, self._score
        return self.model if is_new else None

    def put_back(self) -> None:
        """The model at hand is the best of the run that is resumed."""
        self._taken = None

    @property
    def _score(self) -> Any:
        return self._runner.message_hub.runtime_info.get(self._key)
