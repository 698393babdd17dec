"""The assignment problem: one column for each row, so that the sum of the costs is least.

Kuhn, "The Hungarian method for the assignment problem" (1955), in the form with potentials. It pairs queries and
true objects in training, and detections and tracked objects in videos.
"""

import numpy as np


def hungarian(cost: np.ndarray) -> list[int]:
    """Column of each row, no column twice, with the least sum of cost (n, m), n <= m; O(n^2 m).

    Rows join one by one, each along the cheapest path of reassignments that ends at a free column. Index 0 of the
    arrays is a dummy column that holds the joining row. ValueError if n > m or a cost is not finite.
    """
    n, m = cost.shape
    if n > m:
        raise ValueError(f"{n} rows but only {m} columns: give at least as many (in training: more queries)")
    if not np.isfinite(cost).all():
        raise ValueError(
            "the matching cost is not finite: if this is training, it has diverged; lower the learning rate"
        )
    row_price, column_price = np.zeros(n), np.zeros(m + 1)
    owner = np.full(m + 1, -1)  # row that holds a column
    for row in range(n):
        owner[0], column = row, 0
        least, origin, visited = np.full(m + 1, np.inf), np.zeros(m + 1, dtype=int), np.zeros(m + 1, dtype=bool)
        while owner[column] >= 0:
            visited[column] = True
            slack = np.append(np.inf, cost[owner[column]] - row_price[owner[column]] - column_price[1:])
            closer = ~visited & (slack < least)
            least[closer], origin[closer] = slack[closer], column
            column = int(np.where(visited, np.inf, least).argmin())
            step = least[column]
            row_price[owner[visited]] += step
            column_price[visited] -= step
            least[~visited] -= step
        while column:  # hand the columns of the path on, back to the dummy
            owner[column] = owner[origin[column]]
            column = int(origin[column])
    return [int(np.flatnonzero(owner[1:] == row)[0]) for row in range(n)]
