"""Record work of fixed shapes once and replay it on new values: one launch instead of thousands of kernel launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Runs and records work on tensors whose memory stays in place; returns a function that repeats the work."""

_WARM_UP = 3


def cuda_graph(work: Callable[[], None]) -> Callable[[], None]:
    """Record work on the current GPU as a CUDA graph. The work must not wait for the GPU or copy from pageable memory."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries allocate their workspaces outside the graph
        for _ in range(_WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


class Captured:
    """A function from tensors to tensors, recorded for the shapes of its example.

    Other tensors that the function reads, such as weights, must keep their memory address for the life of this object.
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
            results = function(self._inputs)
            if self._outputs:  # a replay writes its results to the recorded addresses
                for kept, new in zip(self._outputs, results, strict=True):
                    kept.copy_(new)
            else:
                self._outputs = [tensor.clone() for tensor in results]

        self._replay = record(work)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The results for new values of the same shapes."""
        for own, new in zip(self._inputs, inputs, strict=True):
            if own.shape != new.shape or own.dtype != new.dtype:
                raise ValueError(f"recorded for {own.dtype} {tuple(own.shape)}, got {new.dtype} {tuple(new.shape)}")
            own.copy_(new)
        self._replay()
        return [tensor.clone() for tensor in self._outputs]
