"""Multiply-adds, and tensors saved for the backward pass, label by label.

Operators are counted where torch executes them, so it does not matter which
module calls them. What does its work out of torch's sight, or in an order of
its own, is counted by a formula of its arguments instead: see
:func:`operation`.
"""

from __future__ import annotations

import functools
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

# Functions that count as one operation, as (package, name): formula.
OPERATIONS: dict[tuple[str, str], Callable[..., int]] = {}


def operation(package: str, name: str) -> Callable:
    """Count a function by a formula instead of by what it executes.

    The formula is called with the function's own arguments and returns
    multiply-adds. The function is found by its name in the package and its
    imported submodules, and intercepted wherever a module refers to it, so it
    may be imported by name and may move within the package::

        @operation('fpt_plugin.functional', 'content_lambda')
        def _(key, value):
            batch, depth, intra, length = key.shape
            return batch * depth * intra * length * value.shape[2]

    Args:
        package: Dotted name of a package or module.
        name: The function's name in it.
    """

    def register(formula: Callable[..., int]) -> Callable[..., int]:
        OPERATIONS[package, name] = formula
        return formula

    return register


@operation('fpt_plugin.functional', 'mixture_attention')
def _(query: Tensor, key: Tensor, value: Tensor, weights: Tensor, **_) -> int:
    """Scores of all N parts, and one product with the values."""
    batch, parts, num_queries, depth = query.shape
    num_keys, channels = value.shape[1:]
    return batch * num_queries * num_keys * (parts * depth + channels)


@operation('fpt_plugin.functional', 'local_mixture_attention')
def _(query: Tensor, key: Tensor, value: Tensor, weights: Tensor, *,
      window: int, **_) -> int:
    """The same with the window's keys, those outside the map included."""
    batch, parts, depth, height, width = query.shape
    return batch * height * width * window**2 * (
        parts * depth + value.shape[1])


@operation('mmcv.ops', 'deform_conv2d')
def _(x: Tensor, offset: Tensor, weight: Tensor, *_) -> int:
    """A convolution; the interpolation is not counted."""
    # One pair of offsets a place of the output, kernel element and group.
    return (offset.shape[0] * offset.shape[2:].numel() * weight.numel())


@operation('mmcv.ops', 'modulated_deform_conv2d')
def _(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, *_) -> int:
    return (offset.shape[0] * offset.shape[2:].numel() * weight.numel())


@operation('mmcv.ops', 'carafe')
def _(features: Tensor, masks: Tensor, kernel_size: int, *_) -> int:
    """Each pixel of the output is a weighted sum of a window."""
    return (features.shape[0] * features.shape[1] * masks.shape[2:].numel() *
            kernel_size**2)


@operation('mmcv.ops', 'multi_scale_deformable_attn_pytorch')
def _(value: Tensor, shapes: Tensor, locations: Tensor,
      attention_weights: Tensor) -> int:
    """The weighted sum of what is sampled; sampling is not counted."""
    return attention_weights.numel() * value.shape[-1]


def _product(out: Tensor, a: Tensor, b: Tensor, /, **_) -> int:
    """A matrix (..., m, k) times (..., k, n) or (k,)."""
    return a.numel() * (b.shape[-1] if b.dim() > 1 else 1)


def _add_product(out: Tensor, added: Tensor, a: Tensor, b: Tensor, /,
                 **_) -> int:
    return _product(out, a, b)


def _convolution(out: Tensor, x: Tensor, weight: Tensor, bias, stride, padding,
                 dilation, transposed: bool, /, *_, **__) -> int:
    """Every place of the output, or of a transposed one's input."""
    return (x if transposed else out).numel() * weight.shape[1:].numel()


def _attention(out, query: Tensor, key: Tensor, value: Tensor, /, *_,
               **__) -> int:
    """Scaled dot product attention, masked scores included."""
    return query.shape[:-1].numel() * key.shape[-2] * (
        query.shape[-1] + value.shape[-1])


# Formulas by the names of torch's operators, without the underscore of
# in-place variants; called with the result and the arguments.
ATEN: dict[str, Callable[..., int]] = {
    **dict.fromkeys(['mm', 'bmm', 'mv', 'dot', 'vdot'], _product),
    **dict.fromkeys(['addmm', 'baddbmm', 'addbmm', 'addmv'], _add_product),
    **dict.fromkeys([
        'convolution', '_convolution', 'cudnn_convolution',
        'convolution_overrideable'
    ], _convolution),
    **dict.fromkeys([
        '_scaled_dot_product_flash_attention',
        '_scaled_dot_product_flash_attention_for_cpu',
        '_scaled_dot_product_efficient_attention',
        '_scaled_dot_product_cudnn_attention',
        '_scaled_dot_product_fused_attention_overrideable'
    ], _attention),
}

# Operators that multiply and add, and have no formula here: to be named.
UNCOUNTED_ATEN = {
    '_native_multi_head_attention', '_transformer_encoder_layer_fwd',
    '_flash_attention_forward', '_efficient_attention_forward', '_trilinear',
    'mkldnn_rnn_layer', '_thnn_fused_lstm_cell', '_thnn_fused_gru_cell',
    '_fft_r2c', '_fft_c2r', '_fft_c2c'
}
# What mmcv's compiled operators begin with that only select, pool or compare.
HARMLESS_MMCV = ('nms', 'softnms', 'roi_', 'bbox_overlaps')


class Meter:
    """Counts what the copy of a module does, under the label that does it.

    Args:
        module: The copy. Its forwards are wrapped, so it serves one meter.
        labels: A label for each module that shall have one; the innermost
            running module's holds.
        rest: The label of everything else.

    Attributes:
        macs: Multiply-adds of each label.
        saved: Bytes of the tensors saved for backward of each label. A
            storage counts whole, and once, for the label that saves it first;
            parameters and buffers do not count.
        entered: Labels whose module ran.
        failed: Labels whose module raised, and what.
        uncounted: Names of operations without a formula that ran.
        inside: How many operations that a formula counts are running.
    """

    def __init__(self, module: nn.Module, labels: dict[nn.Module, Hashable],
                 rest: Hashable) -> None:
        self.macs: Counter[Hashable] = Counter()
        self.saved: Counter[Hashable] = Counter()
        self.entered: set[Hashable] = {rest}
        self.failed: dict[Hashable, str] = {}
        self.uncounted: set[str] = set()
        self._stack = [rest]
        self.inside = 0  # running operations that a formula counts
        self._parameters = {_storage(p) for p in module.parameters()}
        self._constant = self._parameters | {
            _storage(b) for b in module.buffers()}
        self._used: set[int] = set()
        for part, label in labels.items():
            self._watch(part, label)

    def used(self, parameter: Tensor) -> bool:
        """Whether the pass was seen to do something with this parameter.

        Counting sees all uses; saving sees those that autograd records.
        """
        return _storage(parameter) in self._used

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count multiply-adds."""
        with self._intercepting(), _AtenCounter(self):
            yield

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Count what autograd saves. Nothing is kept: no backward follows."""
        seen = {}

        def pack(tensor: Tensor) -> None:
            self.use(tensor)
            storage = tensor.untyped_storage()
            address = storage._cdata
            if address not in seen and address not in self._constant:
                # The weak reference keeps the address from being used again.
                seen[address] = StorageWeakRef(storage)
                self.saved[self._stack[-1]] += storage.nbytes()

        with self._intercepting(), \
                torch.autograd.graph.saved_tensors_hooks(pack, _no_backward):
            yield

    def add(self, macs: int) -> None:
        """Count for the running label."""
        self.macs[self._stack[-1]] += int(macs)

    def use(self, *arguments) -> None:
        """Remember the parameters among the arguments of an operation."""
        for x in tree_flatten(arguments)[0]:
            if isinstance(x, Tensor) and x.layout is torch.strided:
                storage = _storage(x)
                if storage in self._parameters:
                    self._used.add(storage)

    def _watch(self, module: nn.Module, label: Hashable) -> None:
        """Wrap ``forward`` itself: the hosts' heads are called by it too."""
        forward = module.forward

        @functools.wraps(forward)
        def labelled(*args, **kwargs):
            self._stack.append(label)
            self.entered.add(label)
            try:
                return forward(*args, **kwargs)
            except Exception as error:
                self.failed.setdefault(label, describe(error))
                raise
            finally:
                self._stack.pop()

        module.forward = labelled

    @contextmanager
    def _intercepting(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(_meta_autocast())
            stack.enter_context(_plain_multihead_attention())
            stack.enter_context(_replaced(self._substitutes()))
            yield

    def _substitutes(self) -> list[tuple[Callable, Callable]]:
        pairs = [(function, self._as_operation(function, formula))
                 for (package, name), formula in OPERATIONS.items()
                 for function in _find(package, name)]
        compiled = sys.modules.get('mmcv._ext')
        if compiled is not None:
            pairs += [(function, self._as_compiled(function, name))
                      for name, function in vars(compiled).items()
                      if callable(function) and not name.startswith('_')]
        return pairs

    def _as_operation(self, function: Callable,
                      formula: Callable[..., int]) -> Callable:

        @functools.wraps(function)
        def counted(*args, **kwargs):
            if not self.inside:
                self.add(formula(*args, **kwargs))
            self.use(args, kwargs)
            self.inside += 1
            try:
                return function(*args, **kwargs)
            finally:
                self.inside -= 1

        return counted

    def _as_compiled(self, function: Callable, name: str) -> Callable:
        """An operator of mmcv, which torch does not see and meta lacks."""

        @functools.wraps(function)
        def guarded(*args, **kwargs):
            meta = any(
                isinstance(x, Tensor) and x.is_meta
                for x in (*args, *kwargs.values()))
            if meta and self.inside:
                return None  # it would fill a tensor that is there already
            if meta:
                raise NotImplementedError(
                    f'the compiled operator {name} of mmcv needs data')
            if not self.inside and not name.startswith(HARMLESS_MMCV):
                self.uncounted.add(f'mmcv.{name}')
            return function(*args, **kwargs)

        return guarded


class _AtenCounter(TorchDispatchMode):
    """Sees each operator that torch executes."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter = meter

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.meter.inside:  # counted by a formula
            self.meter.use(args, kwargs)
            return func(*args, **kwargs)
        namespace, name = func._schema.name.split('::')
        name = name.rstrip('_')
        formula = ATEN.get(name) if namespace == 'aten' else None
        if formula is None and namespace == 'aten':
            with self:  # what is made of other operators is counted by them
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        self.meter.use(args, kwargs)
        if formula is not None:
            self.meter.add(formula(out, *args, **kwargs))
        elif name in UNCOUNTED_ATEN:
            self.meter.uncounted.add(f'torch.{name}')
        return out


def describe(error: Exception) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines() or ['']
    message = textwrap.shorten(lines[0], 120, placeholder=' ...')
    return f'{type(error).__name__}: {message}'.rstrip(': ')


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _no_backward(_) -> Tensor:
    raise RuntimeError('a counted forward pass has no backward pass')


def _find(package: str, name: str) -> list[Callable]:
    """What a package and its imported submodules hold under a name."""
    modules = [
        module for key, module in list(sys.modules.items())
        if key == package or key.startswith(f'{package}.')
    ]
    found = [vars(module).get(name) for module in modules]
    return [function for function in found if callable(function)]


@contextmanager
def _replaced(pairs: list[tuple[Callable, Callable]]) -> Iterator[None]:
    """Put the second of a pair wherever a module's namespace has the first."""
    by_id = {id(function): substitute for function, substitute in pairs}
    changed = []
    try:
        for module in list(sys.modules.values()):
            namespace = getattr(module, '__dict__', None)
            if not isinstance(namespace, dict):
                continue
            for name, value in list(namespace.items()):
                if id(value) in by_id:
                    changed.append((namespace, name, value))
                    namespace[name] = by_id[id(value)]
        yield
    finally:
        for namespace, name, value in changed:
            namespace[name] = value


@contextmanager
def _meta_autocast() -> Iterator[None]:
    """Let ``torch.autocast(x.device.type)`` take tensors without data."""
    original = torch.autocast.__init__

    @functools.wraps(original)
    def init(self, device_type, *args, **kwargs):
        device_type = 'cpu' if device_type == 'meta' else device_type
        original(self, device_type, *args, **kwargs)

    torch.autocast.__init__ = init
    try:
        yield
    finally:
        torch.autocast.__init__ = original


@contextmanager
def _plain_multihead_attention() -> Iterator[None]:
    """Keep torch from fusing its MultiheadAttention into one operator."""
    switch = getattr(torch.backends, 'mha', None)  # older torch has none
    if switch is None:
        yield
        return
    enabled = switch.get_fastpath_enabled()
    switch.set_fastpath_enabled(False)
    try:
        yield
    finally:
        switch.set_fastpath_enabled(enabled)
