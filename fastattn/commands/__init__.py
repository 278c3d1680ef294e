"""What ``python -m fastattn`` can do.

====================  ==============================================================================
``info``              what was built and is in use
``check``             every operation × target × dtype against the oracle
``bench``             real model shapes: time, speed-up, share of the machine's limit, error
``embed``             embeddings of a file's lines
``similar``           the lines of a file that are nearest to a text
``attention_map``     attention weights over the tokens of a text, as a picture
--------------------  ------------------------------------------------------------------------------
``measuring``         what ``bench`` and ``check`` measure with
``options``           arguments that several commands have
``model``             what commands that run a model have in common
``files``             what commands read and write
``heatmap``           weights as a figure
``barchart``          what `bench` found as a figure
====================  ==============================================================================

Nothing here is imported by the library itself.
"""
