"""The package's version, in a file that can be read without importing it."""

__version__ = '0.1.0'
