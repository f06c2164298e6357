"""Pairing, soft-target losses, teachers and backbones."""
from . import backbones, losses, teachers  # noqa: F401  (fills the MODELS registry)
