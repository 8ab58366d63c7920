"""The command that evaluates a saved model."""

from train.evaluate import render


def test_the_table_shows_every_figure_with_its_unit():
    table = render({"loss": 1.25, "perplexity": 3.5, "accuracy/seen": 0.5})
    cells = [list(column.cells) for column in table.columns]
    assert cells == [
        ["loss", "perplexity", "accuracy/seen"],
        ["1.2500", "3.5000", "0.5000"],
        ["nats a token", "", "of determined words"],
    ]
