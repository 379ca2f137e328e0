"""Linear classifiers on the features of each layer of a PixelGPT.

They measure which labels can be read from a layer by a linear function. For image
labels the features are averaged over the pixels, with label maps each pixel is
classified. Baselines are raw colours and, on demand, a network with random weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.table import Table

from ...io.checkpoints import read_state_dict
from ...io.files import check_writable, write_json
from ...pretraining import PixelGPT
from ..common import (
    add_cfg_options,
    add_config,
    load_model,
    load_weights,
    positive_int,
)
from ..console import print_lines, wide_console
from .data import Labelled, read_data
from .features import (
    BATCH,
    Source,
    draw_pixels,
    gather,
    groups_of,
    network_source,
    raw_source,
)
from .linear import accuracy, confusion, fit_linear, mean_iou
from .report import best_layer, draw, header, table_rows

ERRORS = (OSError, RuntimeError, TypeError, ValueError)


def parser() -> argparse.ArgumentParser:
    """The flags of tools/probe.py."""
    parser = argparse.ArgumentParser(
        description='Fit linear classifiers on the features of each layer of a '
        'PixelGPT, and on raw colours. Prints a table and writes probe.json and '
        'probe.png.')
    add_config(parser)
    parser.add_argument('checkpoint', help='the trained model')
    parser.add_argument(
        '--images', nargs='+', required=True, metavar='FOLDER',
        help='images for training and for evaluation; of a single folder every '
        'fifth image is held out. Folders inside are the classes')
    parser.add_argument(
        '--label-maps', nargs='+', metavar='FOLDER',
        help='label maps for each of --images, under the names of the images: then '
        'each pixel is classified')
    parser.add_argument(
        '--ignore', nargs='*', type=int, default=[255], metavar='VALUE',
        help='values of label maps that are no class (default: 255)')
    parser.add_argument('--layers', nargs='+', type=int, metavar='LAYER',
                        help='0, the embedded pixels, to the depth of the model '
                        '(default: all)')
    parser.add_argument('--random', action='store_true',
                        help='also probe a network with random weights')
    parser.add_argument(
        '--seeds', nargs='+', type=int, default=[0, 1, 2],
        help='of random weights, and of the pixels that are drawn from label maps '
        '(default: 0 1 2)')
    parser.add_argument(
        '--pixels', type=positive_int, default=100,
        help='pixels of an image to train on, with label maps (default: 100)')
    parser.add_argument('--weight-decay', type=float, default=1e-3,
                        help='of the classifiers (default: 0.001)')
    parser.add_argument('--out', help='folder of probe.json and probe.png (default: '
                        "work_dirs/probe_ and the config's name)")
    parser.add_argument('--force', action='store_true',
                        help='replace files that are there')
    add_cfg_options(parser)
    return parser


def main(args: argparse.Namespace) -> dict:
    """Run tools/probe.py.

    Returns:
        The content of probe.json.
    """
    out = Path(args.out or f'work_dirs/probe_{Path(args.config).stem}')
    files = [out / 'probe.json', out / 'probe.png']
    for path in files:
        check_writable(path, read=(args.checkpoint, ), force=args.force)
    if not args.weight_decay >= 0:
        raise ValueError(f'--weight-decay must be at least 0, got {args.weight_decay}')
    model = _build(args, None)
    load_weights(model, read_state_dict(args.checkpoint).state_dict, args.checkpoint)
    layers = list(range(model.depth + 1)) if args.layers is None else args.layers
    wrong = [layer for layer in layers if not 0 <= layer <= model.depth]
    if wrong:
        raise ValueError(f'--layers must be in 0..{model.depth}, got {wrong}')
    training, evaluation, classes = read_data(
        args.images, args.label_maps, model.image_size, args.ignore)
    dense = args.label_maps is not None
    result = dict(
        config=Path(args.config).name, objective=model.objective,
        metric='mean_iou' if dense else 'accuracy', classes=classes,
        images=[len(training), len(evaluation)], image_size=list(model.image_size),
        pixels=args.pixels if dense else None, weight_decay=args.weight_decay,
        seeds=args.seeds, torch=torch.__version__, records=[])
    settings = (len(classes), args.pixels, args.weight_decay)
    sources = [('raw', raw_source(dense), args.seeds),
               ('trained', network_source(model, layers, dense), args.seeds)]
    for seed in args.seeds if args.random else ():
        random = _build(args, seed)
        random.palette.load_state_dict(model.palette.state_dict())
        sources.append(('random', network_source(random, layers, dense), [seed]))
    for network, source, seeds in sources:
        for name, seed, counts in probe(source, training, evaluation, *settings, seeds):
            record = dict(network=network, layer=name, seed=seed,
                          accuracy=accuracy(counts), mean_iou=mean_iou(counts))
            result['records'].append(record)
            print(f'{network}, layer {name}, seed {seed}: '
                  f'{100 * record[result["metric"]]:.1f} %', flush=True)
    write_json(files[0], result)
    draw(result, files[1])
    _print(result, files)
    return result


def probe(source: Source, training: Labelled, evaluation: Labelled, classes: int,
          pixels: int, weight_decay: float, seeds: Sequence[int]
          ) -> Iterator[tuple[object, int, torch.Tensor]]:
    """Fit a classifier on each kind of features, for each seed.

    Args:
        source: Of the features.
        training: Images that classifiers are fitted to.
        evaluation: Images on whose labelled pixels they are evaluated.
        classes: Number of classes.
        pixels: How many pixels of an image they are fitted to.
        weight_decay: Of the classifiers.
        seeds: Of these pixels.

    Yields:
        The kind, the seed, and counts of true and predicted classes, (classes,
        classes).
    """
    chosen = [draw_pixels(training.labels, pixels, seed) for seed in seeds]
    samples = sum(int(choice.sum()) for choice in chosen)
    for names in groups_of(source, training, samples):
        probes = [[fit_linear(x, training.labels[choice], classes, weight_decay)
                   for x, choice in zip(features, chosen)]
                  for features in gather(source, names, training, chosen)]
        counts = torch.zeros(len(names), len(seeds), classes, classes, dtype=torch.long)
        for part in torch.arange(len(evaluation)).split(BATCH):
            batch = evaluation.part(part)
            labelled = batch.labels >= 0
            labels = batch.labels[labelled]
            for totals, row, x in zip(
                    counts, probes, source.compute(batch.images, names)):
                for total, classify in zip(totals, row):
                    predicted = classify(x[labelled]).argmax(1)
                    total += confusion(predicted, labels, classes)
        for name, totals in zip(names, counts):
            yield from ((name, *found) for found in zip(seeds, totals))


def _build(args: argparse.Namespace, seed: int | None) -> PixelGPT:
    """The model of the config, with weights by a seed.

    Raises:
        ValueError: It is another model.
    """
    with torch.random.fork_rng([]):
        if seed is not None:
            torch.manual_seed(seed)
        model, _ = load_model(args.config, args.cfg_options)
    if not isinstance(model, PixelGPT):
        raise ValueError(f'the model must be a PixelGPT, got {type(model).__name__}')
    return model.eval()


def _print(result: dict, files: Sequence[Path]) -> None:
    console = wide_console()
    table = Table(*header(result))
    for row in table_rows(result):
        table.add_row(*row)
    console.print(table)
    layer, value = best_layer(result)
    print_lines([f'Best layer: {layer} with {value:.1f} %',
                 *(f'Written: {path}' for path in files)], console)
