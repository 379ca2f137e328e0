"""Atomic writing of files, and reading of checkpoints without running their code."""
