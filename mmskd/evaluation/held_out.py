"""Was anything held out? Compares the images of two splits, not the names of the splits."""
import hashlib
import os
from typing import Dict, List, Sequence

import numpy as np


def shared_images(files: Sequence[str], others: Sequence[str]) -> List[str]:
    """The images of one split that are in another as well.

    The same file is the same image, under whatever path it is reached, and so is a copy: files of
    the same size are compared by their content. What is not on this machine is compared by name.

    Args:
        files (sequence[str]): Files of the images of one split.
        others (sequence[str]): Those of the other.

    Returns:
        list[str]: Those of ``files`` that are in both, each once.
    """
    names = {os.path.realpath(path) for path in others}
    sizes: Dict[int, List[str]] = {}
    for path in dict.fromkeys(others):
        if os.path.isfile(path):
            sizes.setdefault(os.path.getsize(path), []).append(path)
    contents: Dict[int, set] = {}

    def is_copy(path: str) -> bool:
        size = os.path.getsize(path) if os.path.isfile(path) else None
        if size not in sizes:
            return False
        if size not in contents:
            contents[size] = {_content(other) for other in sizes[size]}
        return _content(path) in contents[size]

    return [path for path in dict.fromkeys(files)
            if os.path.realpath(path) in names or is_copy(path)]


def random_half(files: Sequence[str], seed: int) -> np.ndarray:
    """A random half of the images: a mask of ``files``, in which an image may occur repeatedly.

    Args:
        files (sequence[str]): The file of the image of each sample.
        seed (int): Decides which half.

    Returns:
        ndarray: True for half of the images (rounded down), shape (len(files),), bool.
    """
    images, which = np.unique(np.asarray(files, str), return_inverse=True)
    chosen = np.random.default_rng(seed).permutation(len(images)) < len(images) // 2
    return chosen[which.reshape(-1)]


def image_keys(files: Sequence[str]) -> List[str]:
    """Short names of images that are the same on another machine: a hash of file and folders."""
    ends = ('/'.join(str(path).replace('\\', '/').split('/')[-3:]) for path in files)
    return sorted({hashlib.sha256(end.encode()).hexdigest()[:10] for end in ends})


def _content(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()
