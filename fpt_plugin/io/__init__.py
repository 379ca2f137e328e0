"""Safe files: atomic writing, and reading checkpoints without running their code."""
