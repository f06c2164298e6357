"""Self-distillation for the models that MMDetection and MMPose already have."""
from mmskd.environment import check_environment, find_version
from mmskd.version import __version__

check_environment()

# After the check: these import torch and mmengine.
from mmskd.checkpoint import allow_checkpoint_classes  # noqa: E402
from mmskd.config import register_config_scope  # noqa: E402

# torch >= 2.6 loads with weights_only=True and must know the classes in mmengine's checkpoints. The
# fork lists them by itself when it loads, and numpy's own functions do not go together with ours.
if not find_version('mmengine')[1]:
    allow_checkpoint_classes()
# Other projects write `_base_ = 'mmskd::pskd_retinanet.py'`.
register_config_scope()

__all__ = ['__version__']
