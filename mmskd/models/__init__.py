"""Pairing, soft-target losses and teachers."""
from . import losses  # noqa: F401  (fills the MODELS registry)
