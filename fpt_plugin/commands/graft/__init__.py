"""Graft FPT and lambda layers into the model of any config.

:func:`graft` returns the new config. The grafted modules start as identity, so the
model keeps its weights and, until it is trained, its outputs. proof.py checks this,
text.py writes the config, costs.py measures the cost. The benchmark ``graft-zoo``
tries the graft on every config of a library.
"""

from .planning import Options, Plan, graft, plan

__all__ = ['Options', 'Plan', 'graft', 'plan']
