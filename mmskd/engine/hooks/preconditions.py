"""What the hooks that teach a model ask of a run."""
from mmengine.model import MMSeparateDistributedDataParallel, is_model_wrapper
from mmengine.optim import BaseOptimWrapper
from torch.nn.parallel import DistributedDataParallel

from mmskd.errors import UsageError


def refuse_unsupported(runner, hook) -> None:
    """Refuse what would fail later, or silently not teach.

    Args:
        runner (Runner): In ``before_run``.
        hook (Hook): Named in the message.

    Raises:
        UsageError: If the config compiles the model, or wraps it in something else than DDP.
    """
    name = type(hook).__name__
    if runner.cfg.get('compile') not in (None, False):
        raise UsageError(
            f'{name}: `compile` in the config is not supported: torch.compile traces past the '
            "forward hooks and tensor subclass that bring the teacher's prediction to the loss. "
            'Remove `compile`, or set it to False.')
    model = runner.model
    if is_model_wrapper(model) and (not isinstance(model, DistributedDataParallel) or isinstance(
            model, MMSeparateDistributedDataParallel)):
        raise UsageError(
            f'{name}: the model wrapper {type(model).__name__} is not supported: the hook needs '
            'the model and its parameters as a whole in one module. Set model_wrapper_cfg to '
            'dict(type="MMDistributedDataParallel").')


def is_training(runner) -> bool:
    """Whether ``Runner.train``, which has built the optimizer by then, called ``before_run``."""
    return isinstance(runner.optim_wrapper, BaseOptimWrapper)
