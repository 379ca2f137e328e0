"""Fixtures of the functions' tests."""

import pytest

from fpt_plugin.functional import budget


@pytest.fixture
def score_budget(monkeypatch):
    """Set how many scores may exist at once."""

    def set_budget(scores):
        assert 'cpu' in budget.SCORE_BUDGET
        monkeypatch.setitem(budget.SCORE_BUDGET, 'cpu', scores)

    return set_budget
