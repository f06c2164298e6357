"""Which of the optional OpenMMLab packages can be imported here.

A user of MMDetection need not have MMPose, and the other way round. Modules that subclass
something of either are imported only where it is installed.
"""
from importlib.util import find_spec

HAS_MMDET = find_spec('mmdet') is not None
HAS_MMPOSE = find_spec('mmpose') is not None
