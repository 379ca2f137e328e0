"""Grafts: FPT and lambda layers put into the model of any config.

:func:`graft` makes the config. What is grafted starts as nothing, so the model
keeps its weights and, until it is trained, its outputs: proof.py checks it,
text.py writes the config down, costs.py says what it costs. The benchmark
``graft-zoo`` tries it on every config of a library.
"""

from .planning import Options, Plan, graft, plan

__all__ = ['Options', 'Plan', 'graft', 'plan']
