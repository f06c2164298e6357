"""Loading the weights of a checkpoint into a model, as the model itself takes them."""
import logging
import re
from collections import OrderedDict
from typing import Any, Dict, List, Optional, Sequence

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmskd.errors import UsageError

from .sources import load_from_http_safely, load_from_local_safely

NAMED = 3  # of the weights that do not fit
MISMATCH = re.compile(r'size mismatch for (\S+): .* torch\.Size\((.*)\) from checkpoint, '
                      r'.* torch\.Size\((.*)\)\.')


def load_weights(model: nn.Module, path: str,
                 checkpoint: Optional[Dict[str, Any]] = None,
                 more: bool = False) -> Dict[str, Any]:
    """Load the weights of a checkpoint into a model.

    A file goes in as by MMEngine's ``load_checkpoint``: a ``state_dict`` or bare weights, also of a
    model in its DDP wrapper (``module.``), and the model renames and converts what older versions
    wrote (MMPose 0.x, the first MMDetection). Other than there, all weights of the model have to be
    in it, and nothing else but

    - copies that the EMA hooks of MMCV 1.x and MMDetection 2.x kept among the weights (``ema_*``);
      the averaged weights are those under the stock names;
    - constants that the model makes itself: buffers which are no longer saved, such as
      ``data_preprocessor.mean`` in files from before September 2022. One that differs from the
      model's is warned about.

    The counters ``num_batches_tracked`` may be missing, as in MMEngine.

    Args:
        model (nn.Module): As the checkpoint's model was built.
        path (str): A file, or a URL (http, https).
        checkpoint (dict, optional): What it holds, where that has been read already. Defaults to
            None: it is read.
        more (bool): Whether it may have weights beyond those of the model. Defaults to False.

    Returns:
        dict: The ``meta`` of the checkpoint; empty if it has none.

    Raises:
        FileNotFoundError: If there is no such file.
        UsageError: If it lacks a weight that the model has, has one that the model lacks, or one of
            another shape; names the file and the keys. The model is then unchanged.
        pickle.UnpicklingError, RuntimeError: If it is not a checkpoint.
    """
    checkpoint = _read(path) if checkpoint is None else checkpoint
    weights = _weights(checkpoint, path)
    before = {key: value.clone() for key, value in model.state_dict().items()
              if isinstance(value, Tensor)}
    problems = _load(model, weights, more)
    if problems:
        _restore(model, before)
        hint = ('; it was saved by a distiller that holds two models: '
                'tools/convert_dwpose_checkpoint.py makes a stock checkpoint of it'
                if any(key.startswith('student.') for key in weights) else '')
        raise UsageError(
            f'{path} does not fit {type(model).__name__}: it {"; ".join(problems)}{hint}')
    _compare_constants(model, weights, path)
    meta = checkpoint.get('meta')
    return meta if isinstance(meta, dict) else {}


def _read(path: str) -> Dict[str, Any]:
    scheme = path.partition('://')[0] if '://' in path else ''
    if scheme not in ('', 'http', 'https'):
        raise UsageError(f'{path}: a checkpoint is read from a file or from http(s), not from '
                         f'{scheme}://; download it and give the file')
    load = load_from_http_safely if scheme else load_from_local_safely
    checkpoint = load(path, map_location='cpu')
    if not isinstance(checkpoint, dict):
        raise UsageError(f'{path} holds no weights but a {type(checkpoint).__name__}')
    return checkpoint


def _weights(checkpoint: Dict[str, Any], path: str) -> 'OrderedDict[str, Any]':
    """The weights by the names that the model would give them, without EMA's copies."""
    given = next((checkpoint[key] for key in ('state_dict', 'model')
                  if isinstance(checkpoint.get(key), dict)), checkpoint)
    if not any(isinstance(value, Tensor) for value in given.values()):
        raise UsageError(f'{path} holds no weights, only {", ".join(map(str, given)) or "nothing"}')
    named = {re.sub(r'^module\.', '', str(key)): value for key, value in given.items()}
    copies = {f'ema_{key.replace(".", "_")}' for key in named}
    weights: Any = OrderedDict((key, value) for key, value in named.items() if key not in copies)
    if hasattr(given, '_metadata'):  # the versions of the modules that wrote it
        weights._metadata = given._metadata
    return weights


def _load(model: nn.Module, weights: Dict[str, Any], more: bool) -> List[str]:
    """Load what fits; what does not, as the model's own loading has it."""
    problems: List[str] = []

    def see(module: nn.Module, keys: Any) -> None:
        constants = dict(module.named_buffers())
        problems.extend(_told('lacks', [
            key for key in keys.missing_keys if not key.endswith('num_batches_tracked')]))
        problems.extend(_told('has beyond the model', [
            key for key in keys.unexpected_keys
            if not (more or key in constants or _prepares_images(key))]))

    handle = model.register_load_state_dict_post_hook(see)
    try:
        model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # of PyTorch: a title, then a line for each weight
        problems += _told('has in another shape', [
            MISMATCH.sub(r'\1: \2 instead of \3', line.strip())
            for line in str(error).splitlines()[1:] or [str(error)]])
    except Exception as error:  # of a module that converts what older versions of it wrote
        problems = [f'cannot be converted to the present version: {type(error).__name__} {error}']
    finally:
        handle.remove()
    return problems


def _told(what: str, keys: Sequence[str]) -> List[str]:
    """What is wrong with some weights, in words, if there are any."""
    named = ', '.join(sorted(keys)[:NAMED])
    more = f' and {len(keys) - NAMED} more' if len(keys) > NAMED else ''
    return [f'{what} {len(keys)} weight{"s" * (len(keys) > 1)} ({named}{more})'] if keys else []


def _restore(model: nn.Module, weights: Dict[str, Tensor]) -> None:
    """Put weights back where they were."""
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key in weights:
                value.copy_(weights[key])


def _compare_constants(model: nn.Module, weights: Dict[str, Any], path: str) -> None:
    """Warn about constants that were other ones when the file was written."""
    saved, own = model.state_dict().keys(), dict(model.named_buffers())
    for key, theirs in weights.items():
        if key in saved or not (key in own or _prepares_images(key)):
            continue  # a weight
        mine = own.get(key)
        if mine is None or mine.shape != theirs.shape or not torch.allclose(
                mine.cpu().double(), theirs.double(), rtol=1e-3):
            print_log(f'{path} was written with {key} = {_values(theirs)}; the config of the model '
                      f'has {_values(mine)}, which is what is used. Is it the right config?',
                      'current', logging.WARNING)


def _prepares_images(key: str) -> bool:
    """Whether it is a constant of the data preprocessor, which may differ in what it registers."""
    return 'data_preprocessor' in key.split('.')


def _values(constant: Any) -> Any:
    """The first numbers of a constant, for a message."""
    return None if constant is None else [
        round(float(value), 4) for value in constant.flatten()[:NAMED]]
