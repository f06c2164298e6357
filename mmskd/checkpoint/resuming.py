"""Which checkpoint a run goes on from."""
import glob
import os
import re
import zipfile
from typing import Iterator, List, NamedTuple, Optional, Tuple

from mmskd.errors import UsageError

from .reading import load_checkpoint_safely

NEEDED = ('state_dict', 'meta', 'message_hub', 'optimizer')


class Resumable(NamedTuple):
    """What a folder has to go on from.

    Attributes:
        path (str, optional): The newest checkpoint that is whole; None if there is none at all.
        passed_over (list[str]): A line for each newer one: its file, and what is wrong with it.
    """
    path: Optional[str]
    passed_over: List[str]


def newest_whole(folder: str, out_dir: Optional[str] = None, template: Optional[str] = None,
                 with_optimizer: bool = True) -> Resumable:
    """Find the newest checkpoint of a run that is whole.

    The one that ``last_checkpoint`` names comes first, then those that were saved before it, then
    all others; of each, those with higher numbers first.

    Args:
        folder (str): The work dir.
        out_dir (str, optional): Where its checkpoints are. Default: None, the work dir.
        template (str, optional): Their names, with ``{}`` for the number. Default: None,
            ``epoch_{}.pth`` and ``iter_{}.pth``.
        with_optimizer (bool): Whether one without optimizer is no checkpoint to go on from.
            Default: True.

    Raises:
        UsageError: If there are checkpoints, but none that is whole; says of each what is wrong.
    """
    passed_over = []
    for path in _candidates(folder, out_dir or folder, template):
        try:
            check_whole(path, with_optimizer)
        except (UsageError, OSError) as error:
            reason = str(error)
            passed_over.append(reason if path in reason else f'{path}: {reason}')
        else:
            return Resumable(path, passed_over)
    if passed_over:
        raise UsageError(f'there is no checkpoint in {out_dir or folder} to go on from: '
                         f'{"; ".join(passed_over)}')
    return Resumable(None, [])


def _candidates(folder: str, out_dir: str, template: Optional[str]) -> Iterator[str]:
    named = last_checkpoint(folder)
    if '://' in named or named and os.path.isdir(named):
        yield named
        return
    numbered = _numbered_files(out_dir, template)
    beside = os.path.join(out_dir, os.path.basename(named))  # the folder may be a copy, or moved
    first = next((path for path in (beside, named) if named and os.path.isfile(path)), None)
    if first:
        yield first
    newest = next((number for number, path in numbered
                   if os.path.basename(path) == os.path.basename(named)), float('inf'))
    for _, path in sorted(numbered, key=lambda entry: (entry[0] > newest, -entry[0])):
        if first is None or os.path.realpath(path) != os.path.realpath(first):
            yield path
    # Nothing to go on from; but a folder that holds one is not empty
    yield from sorted(glob.glob(os.path.join(glob.escape(out_dir), 'best_*.pth')))


def last_checkpoint(folder: str) -> str:
    """What MMEngine's file ``last_checkpoint`` in a work dir says; '' if it says nothing."""
    try:
        with open(os.path.join(folder, 'last_checkpoint')) as file:
            return file.read().strip().strip('\0')
    except (OSError, UnicodeDecodeError):
        return ''


def _numbered_files(folder: str, template: Optional[str]) -> List[Tuple[int, str]]:
    templates = [template] if template else ['epoch_{}.pth', 'iter_{}.pth']
    patterns = [re.escape(each).replace(re.escape('{}'), r'(\d+)') for each in templates]
    if not os.path.isdir(folder):
        return []
    matches = [(re.fullmatch(pattern, name), os.path.join(folder, name))
               for name in os.listdir(folder) for pattern in patterns]
    return [(int(match.group(1)), path) for match, path in matches if match]


def check_whole(path: str, with_optimizer: bool = True) -> None:
    """Raise if a run cannot go on from a checkpoint.

    What PyTorch saves is an archive with a checksum for each tensor, which ``torch.load`` does not
    look at; it is compared here.

    Args:
        path (str): A local file; of a URL or a folder (as DeepSpeed writes) nothing is checked.
        with_optimizer (bool): Whether the optimizer must be in it. Default: True.

    Raises:
        UsageError: If it is empty, cut short, damaged, refused, or lacks something.
        OSError: If it cannot be opened.
    """
    if '://' in path or os.path.isdir(path):
        return
    checkpoint = load_checkpoint_safely(path, map_location='cpu')
    damage = _damage(path)
    if damage:
        raise UsageError(f'{path} is damaged: {damage}')
    needed = NEEDED if with_optimizer else NEEDED[:-1]
    lacking = [key for key in needed if not isinstance(checkpoint, dict) or key not in checkpoint]
    if lacking == ['optimizer']:
        raise UsageError(f'{path} holds no optimizer state (as the best checkpoints and published '
                         'ones do not), so a run cannot go on from it; to start from its weights, '
                         'set load_from in the config')
    if lacking:
        raise UsageError(f'{path} lacks {", ".join(lacking)}: it holds weights, and no run to go '
                         'on with; to start from them, set load_from in the config')
    meta = checkpoint['meta']
    if not isinstance(meta, dict) or not all(
            isinstance(meta.get(key), int) for key in ('epoch', 'iter')):
        raise UsageError(f'{path} does not say at which epoch and iteration it was saved')


def _damage(path: str) -> Optional[str]:
    """What is wrong with an archive, as it is read from one end to the other."""
    with open(path, 'rb') as file:
        if file.read(2) != b'PK':  # PyTorch before 1.6 wrote none
            return None
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
    except Exception as error:  # zipfile decodes and unpacks whatever the damage made of its tables
        return f'{type(error).__name__}: {error}'
    return None if member is None else f'the checksum of {member} is wrong'
