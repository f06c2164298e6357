"""Configs by name: ``mmskd::pskd_retinanet.py`` beside ``mmdet::...`` and ``mmpose::...``."""
import difflib
import functools
import inspect
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from mmengine.config import Config
from mmengine.hub import hub
from mmengine.runner import Runner

from mmskd.errors import UsageError

OURS = 'mmskd::'
# In a config, beside what MMEngine's Runner takes
READ_BY_TOOLS = ('custom_imports', 'preprocess_cfg', 'tta_model', 'tta_pipeline')
CALIBRATION_METRICS = dict(mmdet='DetCalibrationMetric', mmpose='PoseCalibrationMetric')


def config_root(package: str) -> Path:
    """The folder with the configs of an OpenMMLab package.

    An installed package carries them in ``.mim/configs``, a checkout has them beside the package.

    Raises:
        ModuleNotFoundError: If the package is not installed.
        FileNotFoundError: If it has no configs.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f'the package {package} is not installed')
    home = Path(spec.origin).parent
    for folder in (home / '.mim' / 'configs', home.parent / 'configs'):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f'the package {package} has no folder with configs')


def find_config(name: str) -> Path:
    """The file of a config.

    Args:
        name (str): A path, or ``package::path`` for a config that comes with a package.

    Raises:
        ModuleNotFoundError: If the package is not installed.
        FileNotFoundError: If there is no such config; the message offers similar names.
    """
    package, scoped, path = name.rpartition('::')
    if not scoped:
        if not Path(name).is_file():
            raise FileNotFoundError(f'there is no config file {name}; a config of a package is '
                                    'given as package::path, for example '
                                    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
        return Path(name)
    if not re.fullmatch(r'\w+', package):
        raise FileNotFoundError(f'{name} is not of the form package::path/to/config.py')
    root = config_root(package)
    if not (root / path).is_file():
        known = [str(file.relative_to(root)) for file in root.rglob('*.py')]
        similar = difflib.get_close_matches(path, known, n=3, cutoff=0.5)
        hint = ', '.join(f'{package}::{match}' for match in similar) or f'the files in {root}'
        raise FileNotFoundError(f'there is no config {name}; did you mean {hint}?')
    return root / path


def load_config(name: str) -> Config:
    """Read a config given as a file or as ``package::path``.

    Raises:
        ModuleNotFoundError: If the package is not installed.
        FileNotFoundError: If there is no such config, or none of those that it is based on.
        UsageError: If it cannot be read; says where and why.
    """
    path = find_config(name)
    try:
        return Config.fromfile(path)
    except (FileNotFoundError, ModuleNotFoundError, UsageError):
        raise
    except Exception as error:  # a config is a program
        line = getattr(error, 'lineno', None)
        where = f', line {line}' if line else ''
        text = ' '.join(str(getattr(error, 'msg', error)).split())
        raise UsageError(f'{name} cannot be read{where}: {type(error).__name__}: {text}') from error


def project_of(cfg: Config) -> str:
    """``'mmpose'`` or ``'mmdet'``: whose tools the config is written for.

    The default scope says it, else the model. Default: ``'mmdet'``.
    """
    model = cfg.get('model') or {}
    kind = model.get('type', '')
    module = kind if isinstance(kind, str) else kind.__module__
    for scope in (cfg.get('default_scope'), model.get('_scope_'), module.partition('.')[0]):
        if scope in ('mmdet', 'mmpose'):
            return scope
    return 'mmdet'


def type_name(node: dict) -> str:
    """The class that a dict of a config is of, without its package; '' if it does not say."""
    kind = node.get('type', '')
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', '')


def metrics_of(evaluator: Any) -> List[dict]:
    """The settings of the metrics of an evaluator, in whichever form a config has it."""
    if isinstance(evaluator, dict):
        return metrics_of(evaluator['metrics']) if 'metrics' in evaluator else [evaluator]
    return [metric for metric in evaluator or [] if isinstance(metric, dict)]


def change_settings(cfg: Config, settings: Optional[Dict[str, Any]],
                    where: str = '--cfg-options') -> None:
    """Put settings into a config, as its ``merge_from_dict`` does.

    That one also makes parts that the config does not have: ``train_cgf.max_epochs`` would be
    there, and change nothing.

    Args:
        cfg (Config): The config.
        settings (dict, optional): Dotted keys and values.
        where (str): What they come from, for the message. Defaults to ``'--cfg-options'``.

    Raises:
        UsageError: If the config has no such part and nothing reads it; names what it may have
            meant. If a setting does not fit what is there.
    """
    known = [*cfg, *inspect.signature(Runner.__init__).parameters, *READ_BY_TOOLS]
    for name in settings or {}:
        part = name.partition('.')[0]
        if part not in known:
            similar = difflib.get_close_matches(part, known, n=1)
            hint = f'; did you mean {similar[0]}?' if similar else ''
            raise UsageError(f'{where}: {name}: the config has no {part}, and nothing reads '
                             f'it{hint}')
    try:
        cfg.merge_from_dict(settings or {})
    except (KeyError, TypeError, AssertionError) as error:
        text = ' '.join(str(error).strip('\'"').split())
        raise UsageError(f'{where}: {", ".join(settings or {})}: {text}') from error


def require_parts(cfg: Config, *keys: str) -> None:
    """Raise UsageError if a config lacks one of the parts that a tool runs."""
    for key in keys:
        if not cfg.get(key):
            raise UsageError(f'the config has no {key}, which is needed here')


def check_metrics(cfg: Config, split: str, project: str) -> None:
    """Look whether the metrics of a config are for its model, before the first validation does.

    Args:
        cfg (Config): A config.
        split (str): ``'val'`` or ``'test'``.
        project (str): As :func:`project_of` returned.

    Raises:
        UsageError: If one is for the models of the other project.
    """
    ours = {name: owner for owner, name in CALIBRATION_METRICS.items()}
    for metric in metrics_of(cfg.get(f'{split}_evaluator')):
        kind = metric.get('type', '')
        kind = kind if isinstance(kind, str) else f'{kind.__module__}.{kind.__name__}'
        owner = ours.get(type_name(metric), kind.partition('.')[0])
        if owner in CALIBRATION_METRICS and owner != project:
            raise UsageError(
                f'{split}_evaluator: {kind} measures models of {owner}, and the model is one '
                f'of {project}; take it out')


def register_config_scope() -> None:
    """Let ``_base_ = 'mmskd::...'`` and ``mmengine.hub.get_config('mmskd::...')`` find our configs.

    MMEngine knows the packages of OpenMMLab by a fixed list, and takes no name without a folder.
    The functions that look a name up are asked about ours first; all other names go on as before.
    Calling this again changes nothing.
    """
    _ask_first(Config, '_get_cfg_path', _base_path)
    _ask_first(hub, '_get_package_and_cfg_path', _package_and_path)
    _ask_first(hub, '_get_cfg_metainfo', _metainfo)


def _ask_first(owner: Any, name: str, answer: Callable) -> None:
    original = getattr(owner, name)
    if getattr(original, 'asks_mmskd', False):
        return

    @functools.wraps(original)
    def ask(*args, **kwargs):
        reply = answer(*args, **kwargs)
        return original(*args, **kwargs) if reply is None else reply

    ask.asks_mmskd = True  # type: ignore[attr-defined]  # functions may have any
    setattr(owner, name, staticmethod(ask) if inspect.isclass(owner) else ask)


def _base_path(cfg_path: str, filename: str) -> Optional[Tuple[str, None]]:
    # No scope, as for a base in the same folder: our configs name theirs in full, and the scope
    # mmskd would hide the hooks of mmdet from a child that writes _base_.custom_hooks + [...]
    return (str(find_config(cfg_path)), None) if cfg_path.startswith(OURS) else None


def _package_and_path(cfg_path: str) -> Optional[Tuple[str, str]]:
    return ('mmskd', str(find_config(cfg_path))) if cfg_path.startswith(OURS) else None


def _metainfo(package_path: str, cfg_path: str) -> Optional[dict]:
    # An absolute path is the answer of _package_and_path
    return dict(Config=cfg_path) if Path(cfg_path).is_absolute() else None
