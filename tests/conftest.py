from base import _no_scope  # noqa: F401  (a fixture for every test)
