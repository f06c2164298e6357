"""mmskd's children of MMEngine's registries.

Each registry names the package that fills it (``locations``), so that ``type='mmskd.PSKDHook'`` in
a config is enough: MMEngine imports ``mmskd.registry`` because of the scope prefix, and the
location on the first look-up. No ``custom_imports`` is needed.
"""
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import Registry

HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmskd', locations=['mmskd.engine.hooks'])
MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmskd', locations=['mmskd.models'])
METRICS = Registry('metric', parent=MMENGINE_METRICS, scope='mmskd', locations=['mmskd.evaluation'])
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope='mmskd',
                    locations=['mmskd.datasets'])
OPTIM_WRAPPERS = Registry('optimizer wrapper', parent=MMENGINE_OPTIM_WRAPPERS, scope='mmskd',
                          locations=['mmskd.engine.optim'])
