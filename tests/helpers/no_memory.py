"""Errors by which PyTorch and Python say that memory ran out."""

NO_MEMORY = [
    RuntimeError("could not create a primitive"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
    MemoryError(),
]
