"""Batch buffers, their way to the device, and the thread that fills them ahead of the caller."""

import queue
import threading
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Sent = tuple[Tensor, Tensor]  # frames, labels


class Buffer:
    """Room for a batch of frames, used again and again; pinned where the device is a CUDA one.

    There, `send` copies on a stream of its own beside the model's work, and the buffer is filled anew only when
    that copy is done.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self._device, cuda = device, device.type == "cuda"
        self._frames = torch.empty(shape, dtype=torch.uint8, pin_memory=cuda)
        self.rows = list(self._frames.numpy())
        self._stream = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
        self._sent: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Until what was in the buffer is on the device."""
        if self._sent is not None:
            self._sent.synchronize()
            self._sent = None

    def send(self, labels: Tensor) -> Sent:
        """Frames and labels [B] of the B first rows, on their way to the device."""
        frames = self._frames[: len(labels)]
        if self._device.type == "cpu":
            return frames, labels
        if self._stream is None:  # a device without streams: the copy is done when `to` returns
            return frames.to(self._device), labels.to(self._device)
        with torch.cuda.stream(self._stream):
            sent = frames.to(self._device, non_blocking=True), labels.to(self._device)
            self._sent = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._sent.record(self._stream)
        return sent

    def arrive(self, *tensors: Tensor) -> None:
        """Before the caller uses them: its stream waits for the copy, and their memory for its stream."""
        if self._sent is None:
            return
        current = torch.cuda.current_stream(self._device)
        current.wait_event(self._sent)
        for tensor in tensors:
            tensor.record_stream(current)


Filled = tuple[Sent, Tensor, Buffer]  # what was sent, the samples, and the buffer to give back


class Filler:
    """A thread that fills buffers ahead of the caller: takes them from `free`, puts them into `ready`.

    What `ready` gives last is None, or the error that ended the thread. `interrupt` ends what `fill` may wait for.
    """

    def __init__(
        self,
        fill: Callable[[Buffer, int], Filled],
        batches: Iterable[int],
        buffers: list[Buffer],
        interrupt: Callable[[], None] = lambda: None,
    ) -> None:
        self.free: queue.SimpleQueue[Buffer | None] = queue.SimpleQueue()
        self.ready: queue.SimpleQueue[Filled | BaseException | None] = queue.SimpleQueue()
        self._stopped, self._interrupt = threading.Event(), interrupt
        for buffer in buffers:
            self.free.put(buffer)
        self._thread = threading.Thread(target=self._run, args=(fill, batches), name="clip-stream", daemon=True)
        self._thread.start()

    def _run(self, fill: Callable[[Buffer, int], Filled], batches: Iterable[int]) -> None:
        try:
            for number in batches:
                buffer = self.free.get()
                if buffer is None or self._stopped.is_set():
                    return
                buffer.wait()
                self.ready.put(fill(buffer, number))
            self.ready.put(None)
        except BaseException as error:  # the caller's thread raises it
            # One who has stopped asks for nothing more: to be cut short while waiting for a shard is no error.
            self.ready.put(None if self._stopped.is_set() else error)

    def stop(self) -> None:
        """End the thread, whatever it waits for, and the iteration of whoever still asks for batches."""
        self._stopped.set()
        self.free.put(None)  # wakes a thread that waits for a buffer
        self._interrupt()  # and one that waits for a shard
        self._thread.join()
        self.ready.put(None)
