"""The compiled half: typed boundaries, the items of a call, OpenMP. The kernels themselves are C, in kernels/.

targets         which kernels this machine runs, and their tables
threads         how many threads a call gets
strides, costs  leading axes of strided arrays, the costs of all operations (both inline)
options, plan, attention
                attention: its options in one object, its items and parts, the boundary to NumPy
softmax, normalization, rotary, linear, cache
                one operation family each: check the arguments, cut the call into items, run them
probe           what the machine can do at best
"""
