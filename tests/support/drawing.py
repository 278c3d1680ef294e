"""Which cases of a test are run where its parameters multiply: those that let every two values of parameters meet.

What is compiled for a type, or for two, on a target is a kernel of its own, in attention one for few rows and one for
many; so these are one parameter, and each kernel meets every value of each other one. `pytest --every-case` runs the
whole product.
"""

import random
from collections import defaultdict
from itertools import combinations

KERNEL = ("target", "dtype", "stored")

# Queries of which attention computes each row by itself, on every target.
FEW = 8


def drawn(cases):
    """The places of the chosen ones among cases, each a dict of values by parameter, all of the same parameters.

    Greedy: always the case with most values, alone and in pairs, that were not met before. Among equals chance decides,
    the same each time.
    """
    rows = [_factors(case) for case in cases]
    found = [frozenset([*enumerate(row), *combinations(enumerate(row), 2)]) for row in rows]
    order = list(range(len(rows)))
    random.Random(len(rows)).shuffle(order)
    missing, chosen = set().union(*found), []
    # By how many of these each case had left when it was last looked at: it can only have become fewer.
    by_gain = defaultdict(list)
    for place in order:
        by_gain[len(found[place])].append(place)
    for gain in range(max(by_gain, default=0), 0, -1):
        for place in by_gain[gain]:
            now = len(found[place] & missing)
            if now == gain:
                missing -= found[place]
                chosen.append(place)
            else:
                by_gain[now].append(place)
    return sorted(chosen)


def _factors(case):
    """What is drawn: the kernel, and the other values; told apart by how they are written."""
    kernel = [str(case[name]) for name in KERNEL if name in case]
    kernel += [value.queries <= FEW for value in case.values() if hasattr(value, "queries")]
    return tuple(kernel), *(repr(value) for name, value in sorted(case.items()) if name not in KERNEL)
