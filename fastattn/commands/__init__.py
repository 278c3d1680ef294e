"""What ``python -m fastattn`` can do.

====================  ==============================================================================
``info``              what was built and is in use
``check``             every operation × target × dtype against the oracle
``bench``             real model shapes: time, speed-up, share of the machine's limit, error
--------------------  ------------------------------------------------------------------------------
``cases``             the data: operations, model shapes, awkward sizes
``formulas``          each operation as a straightforward NumPy formula
``accuracy``          the rule that a result's error must keep
``decode``            decoding over long contexts, as data, and a loop over many caches
``variants``          options of attention, as data
``measure``           timing, engines in processes of their own, taking turns
``peers``             how each engine runs each operation
``limits``            what this machine can do at most, measured
``machine``           what the machine and the software are
``dtypes``            the types of cases, and what they need
``options``           arguments that measuring has in common
``results``           outcomes set against the limits
``tables``            numbers and tables as text, the progress line
====================  ==============================================================================

Nothing here is imported by the library itself. ``cases``, ``measure`` and ``peers`` also serve the
folder ``benchmarks``, so that a shape or an engine is written down once.
"""
