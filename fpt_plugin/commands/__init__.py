"""The commands, ``python -m fpt_plugin COMMAND``: one file or folder for each.

A command's module has ``parser()``, which returns its argument parser, and
``main(args)``, which runs it and returns the result. Exceptions in ``ERRORS`` end
the command with one line; others keep their traceback. If the result has an
``exit_code``, it becomes the exit status of the process.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command's module and description.

    Attributes:
        module: Name of its module, below ``fpt_plugin.commands``.
        summary: What it does, in one line.
        quiet: Whether to hide deprecation warnings of libraries if it succeeds,
            because they would interrupt the tables that it prints.
    """

    module: str
    summary: str
    quiet: bool = False


COMMANDS = {
    'graft': Command(
        'graft.command',
        'put FPT or lambda layers into any config and prove the drop-in',
        quiet=True),
    'train': Command('train', 'train a detector or a segmentor from a config'),
    'test': Command('test', 'evaluate a detector or a segmentor'),
    'complexity': Command(
        'complexity.command',
        'count parameters, multiply-adds and activation memory by part',
        quiet=True),
    'visualize_attention': Command(
        'visualize_attention.command',
        'draw where an FPT attends in an image',
        quiet=True),
    'doctor': Command(
        'doctor.command',
        'diagnose the environment, or the data of a config, and say how to fix it',
        quiet=True),
    'export': Command(
        'export.command',
        'write backbone and neck as ONNX or as a torch.export program',
        quiet=True),
    'publish_model': Command('publish_model',
                             'strip a training checkpoint for release'),
    'convert_weights': Command(
        'convert_weights.command',
        'convert weights of other projects and of pre-training'),
    'benchmark': Command('benchmark.command',
                         'measure speed, memory and error side by side'),
    'plot_benchmark': Command('plot_benchmark',
                              'plot the results of the benchmark'),
    'restore': Command('restore', 'restore an image with a trained model'),
    'probe': Command(
        'probe.command',
        'fit linear classifiers on each layer of a PixelGPT',
        quiet=True),
    'study': Command('study.command',
                     'compare necks with several seeds, at equal budget'),
    'quickstart': Command('quickstart.command',
                          'train, evaluate and draw a small model'),
}
