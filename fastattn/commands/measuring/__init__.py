"""What ``bench`` and ``check`` measure with.

====================  ==============================================================================
``cases``             the data: operations, model shapes, awkward sizes
``formulas``          each operation as a straightforward NumPy formula
``accuracy``          the rule that a result's error must keep
``engines``           timing, engines in processes of their own, taking turns
``peers``             how each engine runs each operation
``erf``               the error function of arrays, for NumPy's gelu
``worker``            an engine's process
``limits``            what this machine can do at most, measured
``machine``           what the machine and the software are
``dtypes``            the types of cases, and what they need
``results``           outcomes set against the limits
``tables``            numbers and tables as text, the progress line
====================  ==============================================================================
"""
