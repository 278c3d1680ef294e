"""fastattn inside other libraries, one module for each, which imports that library; nothing here is imported by itself.

onnx.py  OPS: the operators of attention, softmax, normalisation and rotary embedding for ONNX's ReferenceEvaluator
"""
