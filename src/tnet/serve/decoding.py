"""Decoding of images from outside in processes that can be killed: a crafted file costs a process, not the server."""

from __future__ import annotations

import json
import multiprocessing
import queue
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from tnet.errors import ImageError, TnetError
from tnet.scenes.reading import ReadOptions
from tnet.stop import STOP_SIGNALS

_MAX_HEAD_BYTES, _MAX_ERROR = 8192, 1000
_START_SECONDS = 60  # a process imports PyTorch first


class Decoder:
    """Decodes bytes of images in other processes.

    Args:
        read: how images are read; always into memory.
        processes: number of processes.
        seconds: time limit of one image.
    """

    def __init__(self, read: ReadOptions, processes: int = 1, seconds: float = 20.0) -> None:
        self.read, self.seconds = read, seconds
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for _ in range(processes):
            self._idle.put(_Process(read))
        self._count = processes

    def decode(self, data: bytes) -> UInt8[Tensor, "channels height width"]:
        """Decode an image; waits for a process that is free.

        Raises:
            ImageError: the image is damaged or of another format, or took too long or too much memory.
        """
        with self._process() as process:
            return process.decode(data, self.seconds)

    @contextmanager
    def _process(self) -> Iterator[_Process]:
        process = self._idle.get()
        try:
            yield process
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End the processes."""
        for _ in range(self._count):
            self._idle.get().end()


class _Process:
    """One process, which is started again after it was ended."""

    def __init__(self, read: ReadOptions) -> None:
        self.read = read
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit the threads' locks
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.read), daemon=True)
        self.process.start()
        theirs.close()
        self.is_new = True

    def decode(self, data: bytes, seconds: float) -> UInt8[Tensor, "channels height width"]:
        try:
            self.connection.send_bytes(data)
            limit = seconds + (_START_SECONDS if self.is_new else 0)
            if not self.connection.poll(limit):
                raise ImageError(f"the image took more than {seconds:g} s to decode; send a smaller one")
            head = json.loads(self.connection.recv_bytes(_MAX_HEAD_BYTES))  # no pickle: a crafted image may rule there
            pixels = None if "error" in head else self.connection.recv_bytes()
        except ImageError:
            self.end()
            self._start()
            raise
        except (EOFError, OSError, ValueError):
            self.end()
            self._start()
            problem = "the process that decoded the image ended, perhaps for want of memory"
            raise ImageError(f"{problem}; send a smaller one") from None
        self.is_new = False
        if pixels is None:
            raise ImageError(str(head["error"]))
        return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).reshape(head["shape"])

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def _serve(connection: Connection, read: ReadOptions) -> None:
    """Decode until the other end closes."""
    for number in STOP_SIGNALS:  # sent to the whole group; the server ends its processes itself
        signal.signal(number, signal.SIG_IGN)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        while True:
            try:
                path.write_bytes(connection.recv_bytes())
            except EOFError:
                return
            try:
                image = read.load(path)
            except TnetError as error:
                text = str(error).replace(str(path), "(sent)")
                connection.send_bytes(json.dumps({"error": text[:_MAX_ERROR]}).encode())
                continue
            assert isinstance(image, Tensor)
            connection.send_bytes(json.dumps({"shape": list(image.shape)}).encode())
            connection.send_bytes(image.numpy().tobytes())
