"""The GPU's operations in Triton, one subject a file: the kernel, and the typed function that launches it.

The functions are those of the device interface, for tensors as the decoder has them. They need the package
triton, which CUDA builds of torch bring, and run on CPU tensors as well where TRITON_INTERPRET=1 is set.
"""

import os

# Sums of products are fused, as they always were: Triton warns that this will have to be asked for.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
