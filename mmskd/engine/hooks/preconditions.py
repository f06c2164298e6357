"""What the hooks that teach a model ask of a run."""
from mmengine.model import MMSeparateDistributedDataParallel, is_model_wrapper
from mmengine.optim import BaseOptimWrapper
from torch.nn.parallel import DistributedDataParallel

from mmskd.errors import UsageError
from mmskd.evaluation.ground_truth import parts_of


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


def refuse_unknown_classes(runner, hook) -> None:
    """Refuse a data set in COCO's format whose file does not know all of its classes.

    MMDetection leaves out objects whose category is none of the classes, without a word, and
    numbers the categories that are left; so one misspelled name moves the labels of others.

    Args:
        runner (Runner): In ``before_run`` of a training.
        hook (Hook): Named in the message.

    Raises:
        UsageError: If a class is no category of the annotation file.
    """
    loader = getattr(runner.train_loop, 'dataloader', None)
    for dataset in parts_of(getattr(loader, 'dataset', None)):
        classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
        known = getattr(dataset, 'cat_ids', None)
        if known is None or not isinstance(classes, (list, tuple)):
            continue
        if len(known) < len(set(classes)):
            raise UsageError(
                f'{type(hook).__name__}: {dataset.ann_file} has {len(known)} of the '
                f'{len(set(classes))} classes of train_dataloader.dataset.metainfo '
                f'({", ".join(map(str, classes))}): each has to be the name of one of its '
                'categories, else objects are left out')


def is_training(runner) -> bool:
    """Whether ``Runner.train``, which has built the optimizer by then, called ``before_run``."""
    return isinstance(runner.optim_wrapper, BaseOptimWrapper)
