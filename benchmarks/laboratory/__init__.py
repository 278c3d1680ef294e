"""What the scripts of benchmarks/ have in common, and the package does without.

====================  ==============================================================================
``decode``            decoding over long contexts, as data, and a loop over many caches
``encoder``           a trained sentence encoder, as data, and its definition
``startup``           programs up to their first embedding, as data, each in a fresh process
``variants``          options of attention, and packed sequences, as data
``peers``             how PyTorch, ONNX Runtime and OpenVINO run each operation, and each engine the encoder
``watching``          engines that are watched call by call, beside busy neighbours
``instructions``      engines kept from instructions that the processor has
====================  ==============================================================================

Cases of operations, engines in processes of their own, results and tables come from
:mod:`fastattn.commands.measuring`. The scripts find this folder because it lies beside them; an engine's process is
told where it is.
"""
