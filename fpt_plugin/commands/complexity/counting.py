"""Count multiply-adds and tensors saved for the backward pass, by label.

Operators are counted when torch dispatches them, whichever module calls them.
Functions that torch does not dispatch, or that choose their order of
computation, are counted by a formula of their arguments: see formulas.py.
"""

from __future__ import annotations

import functools
import os
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ...openmmlab.models import describe
from .formulas import ATEN, HARMLESS_MMCV, OPERATIONS, UNCOUNTED_ATEN


class Meter:
    """Count the work of a module's copy by label.

    Args:
        module: The copy. Its forwards are wrapped, so use it with one meter only.
        labels: Labels of modules. Work counts for the label of the innermost
            running module that has one.
        rest: The label of all other work.

    Attributes:
        macs: Multiply-adds of each label.
        saved: Bytes saved for backward of each label. Each storage counts once,
            in full, for the label that saves it first; parameters and buffers
            do not count.
        entered: Labels whose module ran.
        failed: Labels whose module raised, with the error.
        uncounted: Names of executed operations that have no formula.
        inside: Number of running operations that a formula counts.
    """

    def __init__(self, module: nn.Module, labels: dict[nn.Module, Hashable],
                 rest: Hashable) -> None:
        self.macs: Counter[Hashable] = Counter()
        self.saved: Counter[Hashable] = Counter()
        self.entered: set[Hashable] = {rest}
        self.failed: dict[Hashable, str] = {}
        self.uncounted: set[str] = set()
        self._stack = [rest]
        self.inside = 0
        self._parameters = {_storage(p) for p in module.parameters()}
        self._constant = self._parameters | {
            _storage(b) for b in module.buffers()}
        self._used: set[int] = set()
        for part, label in labels.items():
            self._watch(part, label)

    def used(self, parameter: Tensor) -> bool:
        """Return whether the pass used a parameter.

        ``counting`` records every use, ``saving`` only those that autograd saves.
        """
        return _storage(parameter) in self._used

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count multiply-adds."""
        with self._intercepting(), _AtenCounter(self):
            yield

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Count the tensors that autograd saves, without keeping them."""
        seen = {}

        def pack(tensor: Tensor) -> None:
            self.use(tensor)
            storage = tensor.untyped_storage()
            address = storage._cdata
            if address not in seen and address not in self._constant:
                # The weak reference prevents reuse of the address.
                seen[address] = StorageWeakRef(storage)
                self.saved[self._stack[-1]] += storage.nbytes()

        with self._intercepting(), \
                torch.autograd.graph.saved_tensors_hooks(pack, _no_backward):
            yield

    def add(self, macs: int) -> None:
        """Add multiply-adds to the running label."""
        self.macs[self._stack[-1]] += int(macs)

    def use(self, *arguments) -> None:
        """Record the parameters among the arguments of an operation."""
        for x in tree_flatten(arguments)[0]:
            if isinstance(x, Tensor) and x.layout is torch.strided:
                storage = _storage(x)
                if storage in self._parameters:
                    self._used.add(storage)

    def _watch(self, module: nn.Module, label: Hashable) -> None:
        """Wrap ``forward`` itself, because the libraries also call it directly.

        mmdet's query generators define ``__call__`` instead, which Python looks
        up in the class.
        """
        module.forward = self._labelled(module.forward, label)
        kind = type(module)
        if kind.__call__ is not nn.Module.__call__:
            module.__class__ = type(
                kind.__name__, (kind, ),
                dict(__call__=self._labelled(kind.__call__, label)))

    def _labelled(self, function: Callable, label: Hashable) -> Callable:

        @functools.wraps(function)
        def labelled(*args, **kwargs):
            self._stack.append(label)
            self.entered.add(label)
            try:
                return function(*args, **kwargs)
            except Exception as error:
                self.failed.setdefault(label, describe(error))
                raise
            finally:
                self._stack.pop()

        return labelled

    @contextmanager
    def _intercepting(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(_attention_in_chunks())
            stack.enter_context(meta_autocast())
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
        """Wrap a compiled mmcv operator, which has no dispatch and no meta kernel."""

        @functools.wraps(function)
        def guarded(*args, **kwargs):
            meta = any(
                isinstance(x, Tensor) and x.is_meta
                for x in (*args, *kwargs.values()))
            if meta and self.inside:
                return None  # the operator writes to an existing tensor
            if meta:
                raise NotImplementedError(
                    f'the compiled operator {name} of mmcv needs data')
            if not self.inside and not name.startswith(HARMLESS_MMCV):
                self.uncounted.add(f'mmcv.{name}')
            return function(*args, **kwargs)

        return guarded


class _AtenCounter(TorchDispatchMode):
    """Count each operator that torch dispatches."""

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
            with self:  # count the operators that this one is composed of
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


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _no_backward(_) -> Tensor:
    raise RuntimeError('a counted forward pass has no backward pass')


def _find(package: str, name: str) -> list[Callable]:
    """Find functions by name in a package and its imported submodules."""
    modules = [
        module for key, module in list(sys.modules.items())
        if key == package or key.startswith(f'{package}.')
    ]
    found = [vars(module).get(name) for module in modules]
    return [function for function in found if callable(function)]


@contextmanager
def _replaced(pairs: list[tuple[Callable, Callable]]) -> Iterator[None]:
    """Replace functions by their substitutes in the namespaces of all modules."""
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
def meta_autocast() -> Iterator[None]:
    """Make ``torch.autocast(x.device.type)`` accept meta tensors."""
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
def _attention_in_chunks() -> Iterator[None]:
    """Use chunked attention, so that passes on CPU and meta save equal bytes."""
    if os.environ.get('FPT_ATTENTION'):
        yield
        return
    os.environ['FPT_ATTENTION'] = 'chunked'
    try:
        yield
    finally:
        del os.environ['FPT_ATTENTION']


@contextmanager
def _plain_multihead_attention() -> Iterator[None]:
    """Disable torch's fused MultiheadAttention operator."""
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
