"""Work of fixed shapes that is recorded once and replayed on new values: one launch in place of thousands of kernels'."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Runs and records work that reads and writes tensors which stay where they are; returns what does the same again."""

_WARM_UP = 3


def cuda_graph(work: Callable[[], None]) -> Callable[[], None]:
    """Record work on the current GPU as a CUDA graph. It must not wait for the GPU, nor copy from pageable memory."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries set up their work spaces outside the graph
        for _ in range(_WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


class Captured:
    """A function from tensors to tensors, recorded for the shapes of its example.

    Other tensors that it reads, such as weights, must keep their place in memory for as long as this lives.
    """

    def __init__(
        self,
        function: Callable[[Sequence[Tensor]], Sequence[Tensor]],
        example: Sequence[Tensor],
        record: Record = cuda_graph,
    ) -> None:
        self._inputs = [tensor.clone() for tensor in example]
        self._outputs: list[Tensor] = []

        def work() -> None:
            found = function(self._inputs)
            if self._outputs:  # a replay leaves its results where the recording did
                for kept, new in zip(self._outputs, found, strict=True):
                    kept.copy_(new)
            else:
                self._outputs = [tensor.clone() for tensor in found]

        self._replay = record(work)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Results on new values of the same shapes."""
        for own, new in zip(self._inputs, inputs, strict=True):
            if own.shape != new.shape or own.dtype != new.dtype:
                raise ValueError(f"recorded for {own.dtype} {tuple(own.shape)}, got {new.dtype} {tuple(new.shape)}")
            own.copy_(new)
        self._replay()
        return [tensor.clone() for tensor in self._outputs]
