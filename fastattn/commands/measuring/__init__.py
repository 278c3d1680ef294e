"""The tools of ``bench`` and ``check``.

====================  ==============================================================================
``cases``             the data: operations, model shapes, awkward sizes
``formulas``          each operation as a straightforward NumPy formula
``accuracy``          the rule for the error of a result
``engines``           timing; engines in processes of their own, in turns
``peers``             how each engine runs each operation
``erf``               the error function of arrays, for NumPy's gelu
``worker``            the process of an engine
``limits``            peak speed of this machine, measured
``machine``           facts about the machine and the software
``dtypes``            the types of cases, and the packages they need
``results``           outcomes in relation to the limits
``tables``            numbers and tables as text, the progress line
====================  ==============================================================================
"""
