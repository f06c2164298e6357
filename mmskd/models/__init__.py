"""Pairing, soft-target losses, teachers and backbones."""
from . import backbones, losses  # noqa: F401  (fills the MODELS registry)
