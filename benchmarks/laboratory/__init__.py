"""What the scripts of benchmarks/ share and the package does not need.

====================  ==============================================================================
``decode``            decoding over long contexts, as data, and a loop over many caches
``encoder``           a trained sentence encoder, as data, and its definition
``startup``           programs up to their first embedding, as data, each in a new process
``variants``          options of attention, and packed sequences, as data
``peers``             how PyTorch, ONNX Runtime and OpenVINO run each operation, and each engine the encoder
``watching``          engines whose calls are timed one by one, on a busy machine
``shared``            files that the processes of a run share
``instructions``      limits engines to the instructions of an older processor
====================  ==============================================================================

Cases of operations, engines in processes of their own, results and tables come from
:mod:`fastattn.commands.measuring`. The scripts find this folder because it is next to them; the process of an engine
gets its path.
"""
