"""The compiled half: typed interfaces to the kernels, work items, threads. The kernels themselves are C, in kernels/.

targets         which kernels this machine runs, and their tables
threads         the threads that run the items of a call
arrays, strides, costs
                arrays by address; leading axes of several; the costs of all operations (all inline)
options, attention, sequences, plan
                attention: its options in one object, the interface to NumPy, its sequences, its items and parts
softmax, normalization, rotary, linear, cache
                one operation family each: check the arguments, split the call into items, run them
checks, table   for capi.pyx: checks that give error codes, and the declaration of the table for C
probe           peak speed of the machine
"""
