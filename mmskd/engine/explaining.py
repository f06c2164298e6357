"""What an exception has to say to a user, in one line that names the config key and the remedy."""
import difflib
import errno
import re
from typing import Any, Iterable, Iterator, Optional, Tuple

from mmengine.config import Config

from mmskd.checkpoint import NotDownloadedError
from mmskd.checkpoint.saving import NO_ROOM, no_room_for
from mmskd.config import type_name
from mmskd.errors import RunStopped, UsageError


def explain(error: BaseException, cfg: Optional[Config] = None) -> Optional[str]:
    """One line on an error that has a known cause.

    Args:
        error (BaseException): What was raised, by us, MMEngine, or the system.
        cfg (Config, optional): What was run, to find the key in. Default: None, it was not read.

    Returns:
        str, optional: The line; None if the cause is not known, so that a traceback is in order.
    """
    if isinstance(error, NotDownloadedError):
        return _not_downloaded(error, cfg)
    if isinstance(error, (UsageError, RunStopped, ModuleNotFoundError)):
        return _last_line(error) if 'Original Traceback' in str(error) else in_a_line(str(error))
    if isinstance(error, OSError):
        return _of_the_system(error, cfg)
    for explanation in (_unknown_type, _unknown_optimizer, _unexpected_option, _missing_option,
                        _of_mmengine):
        line = explanation(error, cfg)
        if line:
            return line
    return None


def in_a_line(text: str) -> str:
    """A text without line breaks and the blanks around them."""
    return re.sub(r'\s*\n\s*', ' ', text.strip())


def _last_line(error: BaseException) -> str:
    """Of what a worker process raised: its message follows its traceback."""
    return str(error).strip().rpartition('\n')[2].partition(': ')[2]


def _not_downloaded(error: NotDownloadedError, cfg: Optional[Config]) -> str:
    keys = [f'{key}.{name}'.lstrip('.') for key, node in _nodes(cfg)
            for name, value in node.items() if value == error.source]
    if not keys:
        return str(error)
    owner, _, own = keys[0].rpartition('.')
    hint = (f'; or start without them: --cfg-options {owner}=None'
            if own == 'checkpoint' and owner.endswith('init_cfg') else '')
    return f'{", ".join(keys)}: {error}{hint}'


def _of_the_system(error: OSError, cfg: Optional[Config]) -> Optional[str]:
    name = error.filename or (cfg or {}).get('work_dir')
    if error.errno in NO_ROOM and name:
        return no_room_for(name)
    if error.filename is None:
        return in_a_line(str(error)) if isinstance(error, FileNotFoundError) else None
    return {
        errno.ENOENT: f'there is no file {name}',
        errno.EACCES: f'no permission to open {name}',
        errno.EISDIR: f'{name} is a folder, and a file is needed',
        errno.ENOTDIR: f'{name}: a part of this path is a file, and must be a folder',
        errno.EROFS: f'{name} cannot be written: its file system is read-only',
    }.get(error.errno or 0, f'{name}: {error.strerror}')


def _unknown_type(error: BaseException, cfg: Optional[Config]) -> Optional[str]:
    """A ``type`` that no registry knows."""
    match = re.search(r'(\S+) is not in the (\S+?)::(.+?) registry', str(error))
    if not isinstance(error, KeyError) or match is None:
        return None
    name, scope, kind = match.groups()
    return _no_such_type(name.strip('\'"'), scope, kind, cfg)


def _unknown_optimizer(error: BaseException, cfg: Optional[Config]) -> Optional[str]:
    """MMEngine looks up its name without asking whether there is one."""
    if not isinstance(error, TypeError) or str(error) != 'None is not a callable object':
        return None
    optimizer = ((cfg or {}).get('optim_wrapper') or {}).get('optimizer') or {}
    name = optimizer.get('type')
    if not isinstance(name, str) or name in dict(_registered('optimizer')):
        return None
    return _no_such_type(name, 'mmengine', 'optimizer', cfg)


def _no_such_type(name: str, scope: str, kind: str, cfg: Optional[Config]) -> str:
    known = dict(_registered(kind))
    near = difflib.get_close_matches(name.rpartition('.')[2], known, n=3, cutoff=0.6)
    similar = [each if known[each] in (scope, 'mmengine') else f'{known[each]}.{each}'
               for each in near]
    hint = f'did you mean {" or ".join(similar)}?' if similar else (
        'if it is your own, name its module in custom_imports')
    return f'{_key_of(cfg, name)}there is no {kind} {name} in {scope}; {hint}'


def _registered(kind: str) -> Iterator[Tuple[str, str]]:
    """The classes that there are, and in which scope."""
    import mmengine.registry
    for each in vars(mmengine.registry).values():
        if getattr(each, 'name', None) == kind and hasattr(each, 'module_dict'):
            for registry in (each, *each.children.values()):
                for name in registry.module_dict:
                    yield name.rpartition('.')[2], registry.scope


def _unexpected_option(error: BaseException, cfg: Optional[Config]) -> Optional[str]:
    match = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if not isinstance(error, TypeError) or match is None:
        return None
    kind, option = match.groups()
    # The constructor that refuses it may be that of a class which the one in the config derives
    # from
    found = [(key, node) for key, node in _nodes(cfg) if option in node and 'type' in node]
    found = [(key, node) for key, node in found if type_name(node) == kind] or found
    if len(found) != 1:
        return f'{kind} has no option {option}'
    key, node = found[0]
    return f'{key}: {type_name(node)} has no option {option}'


def _missing_option(error: BaseException, cfg: Optional[Config]) -> Optional[str]:
    match = re.search(r'(\w+)\.__init__\(\) missing \d+ required \S+ arguments?: (.+)', str(error))
    if not isinstance(error, TypeError) or match is None:
        return None
    kind, options = match.groups()
    return f'{_key_of(cfg, kind)}{kind} needs {in_a_line(options)}'


def _of_mmengine(error: BaseException, cfg: Optional[Config]) -> Optional[str]:
    """What MMEngine refuses without saying what to do."""
    for pattern, line in {
            r'Cannot infer the rule for key (\S+),':
                'default_hooks.checkpoint: save_best: nobody knows whether more or less of {} is '
                "better; set default_hooks.checkpoint.rule to 'greater' or 'less'",
            r'``AmpOptimizerWrapper`` is only available':
                'optim_wrapper: AmpOptimWrapper needs a GPU; mmskd.CPUAmpOptimWrapper does not, '
                'and tools/train.py --amp takes whichever fits',
            r'hook should be an instance of Hook or dict, but got (\S+)':
                "custom_hooks: {0} is no hook; write dict(type='{0}')"}.items():
        match = re.search(pattern, str(error))
        if match:
            return line.format(*match.groups())
    return None


def _key_of(cfg: Optional[Config], kind: str) -> str:
    """Where a config names a type, as ``'model.backbone: '``.

    It is empty if the config does not, or more than once.
    """
    found = [key for key, node in _nodes(cfg) if type_name(node) == kind.rpartition('.')[2]]
    return f'{found[0]}: ' if len(found) == 1 else ''


def _nodes(node: Any, key: str = '') -> Iterator[Tuple[str, dict]]:
    if isinstance(node, Config):
        node = node._cfg_dict
    if isinstance(node, dict):
        yield key, node
        children: Iterable[Tuple[Any, Any]] = node.items()
    elif isinstance(node, (list, tuple)):
        children = enumerate(node)
    else:
        return
    for name, child in children:
        yield from _nodes(child, f'{key}.{name}' if key else str(name))
