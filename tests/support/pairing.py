"""Parameters that need not all meet one another at once: it is enough that every two of them do."""


def by_turns(rows, columns, values):
    """(row, column, value) for each row and column, the values taking turns.

    Each value meets every row where there are at least as many columns as values, and every column likewise.
    """
    return [
        (row, column, values[(i + j) % len(values)]) for i, row in enumerate(rows) for j, column in enumerate(columns)
    ]


def alternate(rows, columns):
    """Every other pair of row and column, as the white squares of a chessboard."""
    return [(row, column) for row, column, white in by_turns(rows, columns, (True, False)) if white]
