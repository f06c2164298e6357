"""Hooks: when a teacher is refreshed, saved and asked."""
from .pskd_hook import PSKDHook

__all__ = ['PSKDHook']
