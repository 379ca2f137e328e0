"""What the README says of the random cases."""

from pathlib import Path

from helpers.fuzz_cases import CASES

README = Path(__file__).resolve().parents[2] / 'README.md'
ROWS = (
    ('mixture_attention', 'local_mixture_attention'),
    ('position_lambda', 'content_lambda'),
    ('self_transformer', 'grounding_transformer', 'local_grounding_transformer',
     'rendering_transformer', 'lambda_layer'),
    ('fpt', 'lambda_resnet'),
    ('arguments of fpt', 'arguments of lambda_resnet'),
    tuple(CASES),
)


def test_readme_counts_the_cases():
    table = README.read_text().split('| | suite | heavy |\n|---|---|---|\n')[1]
    rows = table.split('\n\n')[0].splitlines()
    told = [
        tuple(int(cell.replace(',', '')) for cell in row.split('|')[2:4])
        for row in rows
    ]
    assert told == [
        tuple(map(sum, zip(*(CASES[name] for name in row)))) for row in ROWS
    ]
    assert sorted(name for row in ROWS[:-1] for name in row) == sorted(CASES)
