"""Where the time of a taught training step goes."""
from pathlib import Path
from typing import Optional

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from torch.profiler import ProfilerActivity, profile, supported_activities

from mmskd.options import Options
from mmskd.registry import HOOKS

from .teaching_hook import teaching_hooks

ROWS = 40


@HOOKS.register_module()
class ProfileHook(Hook):
    """Profiles some iterations in which the model is taught.

    They begin when the hooks of mmskd have taught in one iteration (not the first of the run, in
    which each teacher is tried), so that what is done once is not in them: with PS-KD, in the
    second epoch. They end early where the model is validated. Then a table is printed, and
    ``trace.json`` written into the work dir, by the first process.

    MMEngine's ProfilerHook starts with the first iteration, where PS-KD has no past self, and does
    not get over the end of an epoch.

    Args:
        iterations (int): How many, at most. Defaults to 10.

    Raises:
        UsageError: If that is no whole number above 0.
    """

    priority = 'VERY_LOW'

    def __init__(self, iterations: int = 10):
        self.iterations = Options('ProfileHook').whole('iterations', iterations, least=1)
        self._profile: Optional[profile] = None
        self._done = 0
        self._seen = 0

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Begin after a taught iteration; end after so many."""
        if not is_main_process():
            return
        self._seen += 1
        if self._profile is not None:
            self._done += 1
            if self._done == self.iterations:
                self._end(runner)
        elif not self._done and self._seen > 1 and all(
                hook.taught_last for hook in teaching_hooks(runner).values()):
            self._profile = profile(activities=supported_activities() & {
                ProfilerActivity.CPU, ProfilerActivity.CUDA})
            self._profile.start()

    def before_val(self, runner) -> None:
        """A validation is no part of a training step."""
        self._end(runner)

    def after_train(self, runner) -> None:
        """Whatever there is."""
        self._end(runner)
        if not self._done and is_main_process():
            runner.logger.error(
                'ProfileHook: nothing was profiled: the training ended before an iteration that '
                'follows a taught one. PS-KD teaches from its second epoch on')

    def _end(self, runner) -> None:
        if self._profile is None:
            return
        running, self._profile = self._profile, None
        running.stop()
        if not self._done:  # it had just begun
            return
        averages = running.key_averages()
        print(f'{self._done} iterations, milliseconds in each:')
        for each in averages:
            if each.key.startswith('mmskd/'):
                print(f'{each.key:16}{each.cpu_time_total / 1000 / self._done:10.1f}')
        print(averages.table(sort_by='cpu_time_total', row_limit=ROWS))
        running.export_chrome_trace(str(Path(runner.work_dir, 'trace.json')))
