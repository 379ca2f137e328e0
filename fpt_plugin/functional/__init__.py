"""Attention as functions of tensors. Only torch is needed.

The table lists which features of torch the functions of necks and backbones support.
``bounded``: the memory stays within the budget at every size. ``plain``: plain
operators hold all scores, windows or lambdas at once. The results are the same. The
functions of pre-training and restoration have first derivatives only.

=======================  =======  =======  ==========  =======  =======  =======
function                 first    compile  torch.func  forward  higher   export
=======================  =======  =======  ==========  =======  =======  =======
mixture_attention        bounded  bounded  plain       plain    plain    plain
local_mixture_attention  bounded  bounded  plain       plain    plain    plain
position_lambda          bounded  bounded  plain       plain    plain    plain
content_lambda           bounded  bounded  bounded     bounded  bounded  bounded
=======================  =======  =======  ==========  =======  =======  =======

- first: outputs and gradients;
- compile: outputs and gradients under ``torch.compile``, with any backend and dynamic
  sizes. Plain in torch < 2.4. Compiled graphs have first derivatives only;
- torch.func: ``grad``, ``vmap``, ``jvp``, ``hessian`` and their combinations;
- forward: dual numbers of ``torch.autograd.forward_ad``;
- higher: derivatives of gradients (``create_graph=True``);
- export: ``torch.export``, ``torch.jit.trace`` and both exporters of ONNX.
"""

from .attention import mixture_attention
from .lambdas import content_lambda, position_lambda
from .local_attention import local_mixture_attention
from .texture_transfer import texture_transfer
from .window_groups import group_windows, grouped_window_attention, pack_windows

__all__ = [
    'mixture_attention', 'local_mixture_attention', 'content_lambda',
    'position_lambda', 'grouped_window_attention', 'group_windows',
    'pack_windows', 'texture_transfer'
]
