"""The compiled half: typed interfaces to the kernels, work items, threads. The kernels themselves are C, in kernels/.

targets         which kernels this machine runs, and their tables
threads         the threads that run the items of a call
strides, costs  leading axes of strided arrays; the costs of all operations (both inline)
options, plan, attention
                attention: its options in one object, its items and parts, the interface to NumPy
softmax, normalization, rotary, linear, cache
                one operation family each: check the arguments, split the call into items, run them
probe           peak speed of the machine
"""
