"""Generated data sets for demonstrations and tests, and crops without labels.

The generators need numpy and Pillow only. ``ShapesDataset`` is there where mmdet is installed,
``StickFigureDataset`` where mmpose is.
"""
from mmskd.optional import HAS_MMDET, HAS_MMPOSE

from .generate import is_complete, write_demo_data

__all__ = ['is_complete', 'write_demo_data']

if HAS_MMDET:
    from .shapes import ShapesDataset  # noqa: F401
    __all__ += ['ShapesDataset']
if HAS_MMPOSE:
    from .stick_figures import StickFigureDataset  # noqa: F401
    from .unlabelled import UnlabelledCocoDataset  # noqa: F401
    __all__ += ['StickFigureDataset', 'UnlabelledCocoDataset']
