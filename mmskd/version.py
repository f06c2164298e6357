"""The version, and nothing that would have to be imported to read it."""
__version__ = '0.1.0'
