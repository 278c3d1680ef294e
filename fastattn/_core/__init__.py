"""The compiled half: typed boundaries, the items of a call, OpenMP. The kernels themselves are C, in kernels/.

targets         which kernels this machine runs, and their tables
threads         how many threads a call gets
strides         leading axes of strided arrays (inline)
attention, softmax, normalization
                one operation family each: judge the arguments, cut the call into items, run them
probe           what the machine can do at best
"""
