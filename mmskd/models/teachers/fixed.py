"""A teacher that does not change: a model built from a config, with the weights of a checkpoint."""
import os
from typing import Optional

from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmskd.checkpoint import load_weights
from mmskd.config import load_config, project_of
from mmskd.errors import UsageError

from .frozen import freeze
from .metainfo import metainfo_of_checkpoint, metainfo_of_config


def build_teacher(config: str, checkpoint: str, folder: Optional[str] = None) -> nn.Module:
    """Build a frozen model in eval mode.

    What its answers are called is in its attribute ``dataset_meta``, as MMDetection's
    ``init_detector`` and MMPose's ``init_model`` have it: what the checkpoint says, else what the
    training data of the config say, else an empty dict.

    Args:
        config (str): Config file, or ``package::path`` of one that comes with a package. A relative
            path is looked for in ``folder`` first, then in the working directory.
        checkpoint (str): Its weights, a file or URL.
        folder (str, optional): Where the config that names the teacher is, as for ``_base_``.

    Raises:
        FileNotFoundError, ModuleNotFoundError: If there is no such config or checkpoint.
        UsageError: If the config has no model, or the checkpoint is that of another.
    """
    cfg = load_config(find_beside(config, folder))
    if 'model' not in cfg:
        raise UsageError(f'teacher.config: {config} has no model')
    # As Runner has it: the settings of mmpretrain's data stand outside of the model
    if cfg.get('data_preprocessor') is not None:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    scope = cfg.get('default_scope') or project_of(cfg)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(cfg.model)
    meta = load_weights(model, checkpoint)
    model.dataset_meta = metainfo_of_checkpoint(meta) or metainfo_of_config(cfg, scope)
    return freeze(model)


def find_beside(path: str, folder: Optional[str] = None) -> str:
    """Where a file is that a config names, from whatever folder one asks.

    A config that is dumped into the work dir of its run lies in another folder than the one that
    was written, from which a relative path leads elsewhere. So a run writes this into its own
    config before it is dumped.

    Args:
        path (str): As the config has it.
        folder (str, optional): Where the config is. Defaults to None: the working directory.

    Returns:
        str: An absolute path, in ``folder`` or else in the working directory. ``package::path``
        comes back as it is, and so does what is not there.
    """
    if '::' not in path:
        for found in (os.path.join(folder or '', path), path):
            if os.path.exists(found):
                return os.path.abspath(found)
    return path
