"""Attention as functions of tensors; needs torch and nothing else.

What torch can do with those of necks and backbones. ``bounded``: in the memory of
the budget, whatever the size. ``plain``: by plain operators, which hold all scores,
windows or lambdas at once. Both give the same numbers. The functions of pre-training
and restoration have first derivatives.

=======================  =======  =======  ==========  =======  =======  =======
function                 first    compile  torch.func  forward  higher   export
=======================  =======  =======  ==========  =======  =======  =======
mixture_attention        bounded  bounded  plain       plain    plain    plain
local_mixture_attention  bounded  bounded  plain       plain    plain    plain
position_lambda          bounded  bounded  plain       plain    plain    plain
content_lambda           bounded  bounded  bounded     bounded  bounded  bounded
=======================  =======  =======  ==========  =======  =======  =======

- first: outputs and gradients;
- compile: the same under ``torch.compile``, any backend, sizes that change. On
  torch before 2.4 plain, and compiled graphs have first derivatives only;
- torch.func: ``grad``, ``vmap``, ``jvp``, ``hessian`` and what is made of them;
- forward: dual numbers of ``torch.autograd.forward_ad``;
- higher: derivatives of gradients (``create_graph=True``);
- export: ``torch.export``, ``torch.jit.trace`` and both exporters of ONNX.
"""

from .attention import mixture_attention
from .lambdas import content_lambda, position_lambda
from .local_attention import local_mixture_attention
from .texture_transfer import texture_transfer
from .window_groups import grouped_window_attention, pack_windows

__all__ = [
    'mixture_attention', 'local_mixture_attention', 'content_lambda',
    'position_lambda', 'grouped_window_attention', 'pack_windows',
    'texture_transfer'
]
