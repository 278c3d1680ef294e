"""fastattn inside other libraries: one module each, which imports that library; none is imported by default.

onnx.py  OPS: the operators of attention, softmax, normalisation and rotary embedding for ONNX's ReferenceEvaluator
"""
