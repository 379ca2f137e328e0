"""Diagnose an environment; nothing here imports the libraries that may be broken."""
