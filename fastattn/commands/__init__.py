"""The commands of ``python -m fastattn``.

====================  ==============================================================================
``info``              the build, and what it uses on this machine
``check``             every operation × target × dtype against the float64 reference
``bench``             shapes of real models: time, speed-up, share of the machine's limit, error
``embed``             embeddings of a file's lines
``similar``           the lines of a file that are most similar to a text
``rerank``            the lines of a file that answer a text best, by a cross-encoder
``attention_map``     attention weights over the tokens of a text, as a picture
--------------------  ------------------------------------------------------------------------------
``measuring``         the tools of ``bench`` and ``check``
``options``           arguments that several commands share
``model``             what commands that run a model share
``files``             reading and writing files
``rows``              embeddings of a file's lines, kept with a record of what they were made of
``heatmap``           weights as a figure
``barchart``          results of ``bench`` as a figure
====================  ==============================================================================

The library itself imports nothing from here.
"""
