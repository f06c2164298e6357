"""Backbones that start from ImageNet weights without a download from a hub."""
from .efficientnet_lite import EfficientNetLite

__all__ = ['EfficientNetLite']
