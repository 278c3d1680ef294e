"""fastattn inside other libraries: one module each, which imports that library; none is imported by default.

dask/    attention, softmax, norms, linear layers and encoders over dask collections
onnx.py  OPS: the operators of attention, softmax, normalisation and rotary embedding for ONNX's ReferenceEvaluator
"""
