"""Where MMEngine finds checkpoints: files, URLs, names of models, and stores; each read safely."""
import difflib
import os
from http.client import HTTPException
from typing import Any, Dict
from urllib.error import URLError
from urllib.parse import urlparse

import mmengine.runner.checkpoint as mmengine_loading
import torch
from mmengine.dist import barrier, get_rank
from mmengine.fileio import get_file_backend
from mmengine.runner import CheckpointLoader

from mmskd.errors import UsageError

from .reading import load_checkpoint_safely

# Models that MMEngine knows by name, and how it finds their URLs
NAMED = {
    'torchvision': 'get_torchvision_models',
    'modelzoo': 'get_torchvision_models',
    'open-mmlab': 'get_external_models',
    'openmmlab': 'get_external_models',
    'mmcls': 'get_mmcls_models',
}


class NotDownloadedError(UsageError):
    """There is no way to the host of a checkpoint.

    Attributes:
        source (str): The URL, or the name of the model.
    """

    def __init__(self, source: str, message: str) -> None:
        super().__init__(message)
        self.source = source


def load_from_local_safely(filename: str, map_location: Any = None) -> Any:
    """What MMEngine calls for a local file."""
    return load_checkpoint_safely(filename, map_location)


def load_from_http_safely(filename: str, map_location: Any = None) -> Any:
    """What MMEngine calls for a URL; the file is kept in PyTorch's cache.

    Raises:
        NotDownloadedError: If it cannot be downloaded; says where to put it.
    """
    return _from_url(filename, filename, map_location)


def load_from_name_safely(filename: str, map_location: Any = None) -> Any:
    """What MMEngine calls for the name of a model, as ``torchvision://resnet50``.

    Raises:
        UsageError: If there is no such model; names those that are called alike.
        NotDownloadedError: If it cannot be downloaded; says where to put it.
    """
    scheme, _, name = filename.partition('://')
    urls = getattr(mmengine_loading, NAMED[scheme])()
    if scheme in ('open-mmlab', 'openmmlab'):
        name = mmengine_loading.get_deprecated_model_names().get(name, name)
    if name not in urls:
        similar = difflib.get_close_matches(name, urls, n=3)
        hint = f'; did you mean {" or ".join(similar)}?' if similar else ''
        raise UsageError(f'{filename}: MMEngine knows no such model{hint}')
    if not urls[name].startswith(('http://', 'https://')):  # a user's own list may name files
        home = mmengine_loading._get_mmengine_home()
        return load_checkpoint_safely(os.path.join(home, urls[name]), map_location)
    checkpoint = _from_url(filename, urls[name], map_location)
    return mmengine_loading._process_mmcls_checkpoint(
        checkpoint) if scheme == 'mmcls' else checkpoint


def load_from_ceph_safely(filename: str, map_location: Any = None) -> Any:
    """What MMEngine calls for ``s3://`` and ``petrel://``."""
    backend = get_file_backend(filename, backend_args=dict(backend='petrel'))
    with backend.get_local_path(filename) as path:
        return load_checkpoint_safely(str(path), map_location)


def load_from_pavi_safely(filename: str, map_location: Any = None) -> Any:
    """What MMEngine calls for ``pavi://``, whose client reads files by itself.

    Raises:
        UsageError: Always.
    """
    raise UsageError(f'{filename}: checkpoints are not read from pavi://; download it and give '
                     'the file')


def _from_url(source: str, url: str, map_location: Any) -> Any:
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    path = os.path.join(folder, os.path.basename(urlparse(url).path))
    for turn in (get_rank() == 0, get_rank() > 0):  # one downloads, the others find it
        if turn and not os.path.exists(path):
            os.makedirs(folder, exist_ok=True)
            try:
                torch.hub.download_url_to_file(url, path)
            except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
                reason = getattr(error, 'reason', None) or error
                raise NotDownloadedError(
                    source, f'{source} cannot be downloaded ({reason}); where there is a network, '
                    f'download {url} and put it at {path}') from error
        barrier()
    return load_checkpoint_safely(path, map_location)


def use_safe_loading() -> None:
    """Make MMEngine read checkpoints by :func:`load_checkpoint_safely` in this process.

    It holds for ``load_from``, ``resume``, and ``Pretrained`` weights in a config, from wherever
    MMEngine takes them.
    """
    loaders: Dict[Any, Any] = {
        '': load_from_local_safely,
        ('http://', 'https://'): load_from_http_safely,
        tuple(f'{scheme}://' for scheme in NAMED): load_from_name_safely,
        (r'(\S+\:)?s3://', r'(\S+\:)?petrel://'): load_from_ceph_safely,
        'pavi://': load_from_pavi_safely,
    }
    for prefixes, loader in loaders.items():
        CheckpointLoader.register_scheme(prefixes, loader, force=True)
