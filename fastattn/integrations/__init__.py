"""fastattn inside other libraries: one module each, which imports that library; none is imported by default.

langchain.py, llama_index.py, haystack.py, chroma.py
                 embeddings and rerankers of fastattn.models as these frameworks ask for them; _shared_models.py holds
                 the models
sentence_transformers.py
                 the module Transformer of a SentenceTransformer
dask/            attention, softmax, norms, linear layers and encoders over dask collections
onnx.py          OPS: operators of attention, softmax, normalisation and rotary embedding for ONNX's ReferenceEvaluator
transformers.py  register(): "fastattn" as an attention implementation of Hugging Face models; its masks are lowered in
                 _transformers_masks.py
"""
