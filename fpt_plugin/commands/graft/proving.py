"""Which models are compared to prove a graft, and what they must show."""

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
    """Compare a plain model with its graft, and show the result.

    Beside a new backbone FPT is compared with the same backbone without it.

    Args:
        plain: The config as it was.
        made: The graft.
        options: What was asked for.
        weights: Of the plain model; None: random ones.
        source: What they are called in messages.
        console: Where the result is shown.

    Returns:
        None where the backbone is new and the neck is not grafted.

    Raises:
        RuntimeError: A model does not build or run.
        ValueError: The graft changes the outputs, or does nothing for them.
    """
    if options.backbone:
        console.print('The layers of a LambdaResNet are new: the model is not '
                      'what it was.')
        if not options.grafts_neck:
            return None
        console.print('FPT is compared with the same backbone without it.')
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
                         'nothing was written: take other --levels, or a neck '
                         'whose maps heads read')
    if proof.identical:
        return
    different = [c.what for c in proof.comparisons if not c.equal]
    what = (f'changes {", ".join(different)}' if different else
            'could not be compared: nothing in the outputs could differ')
    raise ValueError(f'the graft {what}, so nothing was written; --no-proof '
                     "writes it (fusion='concat' does not start at zero)")
