"""Prove the plan of a graft, and require identical outputs."""

from __future__ import annotations

from dataclasses import replace

from mmengine.config import Config
from rich.console import Console

from ...io.checkpoints import Weights
from .planning import Options, Plan, plan
from .proof import Proof, prove
from .sites import Unbuildable


def prove_plan(plain: Config, made: Plan, options: Options,
               weights: Weights | None, source: str | None,
               console: Console) -> Proof | None:
    """Compare a plain model with its graft, and print the result.

    If the backbone is replaced, the plain model gets the new backbone too.

    Args:
        plain: The config without the graft.
        made: The plan of the graft.
        options: The options of the graft.
        weights: Weights of the plain model; None: random ones.
        source: Name of the weights for messages.
        console: Where the result is printed.

    Returns:
        The proof; None if the backbone is replaced and the neck is not grafted.

    Raises:
        RuntimeError: A model does not build or run.
        ValueError: The graft changes the outputs, or can have no effect on them.
    """
    if options.backbone:
        console.print('The layers of a LambdaResNet are new, so the outputs of '
                      'the model change.')
        if not options.grafts_neck:
            return None
        console.print('FPT is compared with the same new backbone without FPT.')
        plain = plan(plain, replace(options, neck=None, levels=None,
                                    key_strides=None, preset=None, neck_options={},
                                    lr_mult=None, load_from=None)).cfg
        weights = None
    try:
        proof = prove(plain, made.cfg, weights and weights.state_dict, source)
    except Unbuildable as error:
        raise Unbuildable(f'{error}; --no-proof --no-costs write the config '
                          'without running it') from error
    console.print(proof.table())
    _require_identical(proof)
    return proof


def _require_identical(proof: Proof) -> None:
    if proof.identical and proof.effective is False:
        raise ValueError('no head reads the maps that the graft transforms, so '
                         'nothing was written: use other --levels, or a neck '
                         'whose maps heads read')
    if proof.identical:
        return
    different = [c.what for c in proof.comparisons if not c.equal]
    reason = (f'changes {", ".join(different)}' if different else
              'could not be compared: all values in the outputs are the same')
    raise ValueError(f'the graft {reason}, so nothing was written; --no-proof '
                     "writes it (fusion='concat' does not start at zero)")
