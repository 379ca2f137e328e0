"""Table, plot and JSON of the results of probes."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from ...io.files import replacing

NETWORKS = dict(trained='trained', random='random weights')
COLOURS = dict(trained='#0b6e8a', random='#999999')
RAW_COLOURS = ('#e0a030', '#c05020', '#803080')


def figures(result: dict, network: str) -> dict:
    """Collect figures in percent by layer or kind, one for each seed."""
    found: dict = {}
    for record in result['records']:
        if record['network'] == network:
            found.setdefault(record['layer'], []).append(
                100 * record[result['metric']])
    return found


def spread(values: list[float]) -> str:
    """Format mean and range."""
    text = f'{mean(values):.1f}'
    if len(values) > 1:
        text += f' ({min(values):.1f} to {max(values):.1f})'
    return text


def best_layer(result: dict, network: str = 'trained') -> tuple[int, float]:
    """Return the layer with the best mean, and the mean in percent."""
    means = {layer: mean(x) for layer, x in figures(result, network).items()}
    best = max(means, key=means.get)
    return best, means[best]


def table_rows(result: dict) -> list[list[str]]:
    """Make the rows of the table: layer or kind, figures of the networks."""
    shown = [n for n in NETWORKS if figures(result, n)]
    columns = [figures(result, network) for network in shown]
    rows = [[str(layer), *(spread(column[layer]) if layer in column else ''
                           for column in columns)] for layer in columns[0]]
    rows += [[kind, spread(values), *[''] * (len(shown) - 1)]
             for kind, values in figures(result, 'raw').items()]
    return rows


def header(result: dict) -> list[str]:
    """Name the columns of the table."""
    metric = dict(mean_iou='mIoU', accuracy='accuracy')[result['metric']]
    return ['layer', *(f'{metric} in %, {text}' for network, text in NETWORKS.items()
                       if figures(result, network))]


def draw(result: dict, path: Path) -> None:
    """Draw figures by layer; a band is the range of the seeds."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(6, 3.6), layout='constrained')
    axis = figure.subplots()
    for network, text in NETWORKS.items():
        found = figures(result, network)
        if found:
            layers = list(found)
            axis.plot(layers, [mean(x) for x in found.values()], 'o-', ms=4,
                      color=COLOURS[network], label=text)
            axis.fill_between(layers, [min(x) for x in found.values()],
                              [max(x) for x in found.values()], alpha=0.25,
                              color=COLOURS[network], lw=0)
    for colour, (kind, values) in zip(RAW_COLOURS, figures(result, 'raw').items()):
        axis.axhline(mean(values), ls='--', lw=1, color=colour, label=kind)
    axis.set_xlabel('layer')
    axis.set_ylabel(dict(mean_iou='mIoU in %', accuracy='accuracy in %')[
        result['metric']])
    axis.legend(frameon=False, fontsize=8)
    axis.grid(alpha=0.3)
    axis.spines[['top', 'right']].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format='png')
