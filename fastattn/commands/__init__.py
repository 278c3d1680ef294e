"""What ``python -m fastattn`` can do.

====================  ==============================================================================
``info``              what was built and is in use
``check``             every operation × target × dtype against the oracle
``bench``             real model shapes: time, speed-up, share of the machine's limit, error
``embed``             embeddings of a file's lines
``similar``           the lines of a file that are nearest to a text
``attention_map``     attention weights over the tokens of a text, as a picture
--------------------  ------------------------------------------------------------------------------
``cases``             the data: operations, model shapes, awkward sizes
``formulas``          each operation as a straightforward NumPy formula
``accuracy``          the rule that a result's error must keep
``decode``            decoding over long contexts, as data, and a loop over many caches
``encoder``           a trained sentence encoder, as data, and its definition
``startup``           programs up to their first embedding, as data, each in a fresh process
``variants``          options of attention, as data
``measure``           timing, engines in processes of their own, taking turns
``peers``             how each engine runs each operation
``limits``            what this machine can do at most, measured
``machine``           what the machine and the software are
``dtypes``            the types of cases, and what they need
``options``           arguments that measuring has in common
``results``           outcomes set against the limits
``tables``            numbers and tables as text, the progress line
``model``             what commands that run a model have in common
``files``             what commands read and write
``heatmap``           weights as a figure
====================  ==============================================================================

Nothing here is imported by the library itself. ``cases``, ``measure`` and ``peers`` also serve the
folder ``benchmarks``, so that a shape or an engine is written down once.
"""
