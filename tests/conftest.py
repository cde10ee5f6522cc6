"""What all tests share: few threads (two cores)."""

import torch

torch.set_num_threads(2)
