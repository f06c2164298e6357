"""What the hooks that bring a teacher to the losses ask of a run and of a model."""
from mmengine.model import is_model_wrapper
from mmengine.optim import BaseOptimWrapper
from torch import nn

from mmskd.models.teachers.mirror import Tap


def refuse_unsupported(runner, hook) -> None:
    """Refuse what would fail later, or silently not distil.

    Args:
        runner (Runner): In ``before_run``.
        hook (Hook): Named in the message.

    Raises:
        RuntimeError: If the config compiles the model, or wraps it in something else than DDP.
    """
    name = type(hook).__name__
    if runner.cfg.get('compile') not in (None, False):
        raise RuntimeError(
            f'{name}: `compile` in the config is not supported: torch.compile traces past the '
            "forward hooks and tensor subclass that bring the teacher's prediction to the loss. "
            'Remove `compile`, or set it to False.')
    wrapper = type(runner.model).__name__
    if is_model_wrapper(runner.model) and 'DistributedDataParallel' not in wrapper:
        raise RuntimeError(
            f'{name}: the model wrapper {wrapper} is not supported, since it splits the parameters '
            'that the hook has to read as a whole. Use MMDistributedDataParallel.')


def refuse_second_teacher(model: nn.Module, hook) -> None:
    """One hook at a time: their teachers would meet in the same losses.

    Raises:
        RuntimeError: If another hook of mmskd is attached to the model.
    """
    if any(isinstance(other, Tap) and other.func for other in model._forward_pre_hooks.values()):
        raise RuntimeError(f'{type(hook).__name__}: another hook of mmskd teaches this model already. '
                           'Leave one of PSKDHook, DistillHook and HeadDistillHook in custom_hooks.')


def is_training(runner) -> bool:
    """Whether ``before_run`` was called by ``Runner.train``, which has built the optimizer by then."""
    return isinstance(runner.optim_wrapper, BaseOptimWrapper)


def is_loss_pass(args: tuple, kwargs: dict) -> bool:
    """Whether a model of OpenMMLab is called with ``mode='loss'``."""
    return kwargs.get('mode', args[2] if len(args) > 2 else 'tensor') == 'loss'
