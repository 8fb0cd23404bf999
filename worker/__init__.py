"""The GPU process: prepares sides, computes cells, writes PNGs. Imports neither flask nor api."""

import os

# Tensors of 2 MB and more on huge pages, where the system lets a program ask for them: a fresh page costs about 2 us on
# a virtual machine, and a forward pass takes gigabytes of them (the tiny network at 1024 px: 8 % less CPU time).
# torch reads this when it makes its first tensor, so it stands before every import of torch.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
