"""What both metrics ask of the samples that they are given."""
from typing import Hashable, List, Optional, Sequence

from mmskd.errors import UsageError


def check_repeats(keys: Sequence[Hashable], metric: str) -> None:
    """Raise UsageError if a sample was predicted twice: half of it would count as wrong."""
    seen = set()
    for key in keys:
        if key in seen:
            name = next(part for part in (key if isinstance(key, tuple) else (key, ))
                        if part is not None)
            raise UsageError(f'{metric}: image {name} was predicted twice; a results file of a '
                             'data set that repeats images, or of two tests, cannot be measured')
        seen.add(key)


def check_same_calibrator(results: List[dict], metric: str) -> Optional[str]:
    """Digest of the calibrator that mapped the scores of all samples, None if none did."""
    found = {result['calibrator'] for result in results}
    if len(found) > 1:
        raise UsageError(f'{metric}: the scores of some samples were mapped by a calibrator, those '
                         'of others by none or by another')
    return found.pop() if found else None
