"""Processes that share the work of a run, started by torchrun on one machine or several.

Every process holds the same state and takes the same decisions; what is costly is shared out. A process that was not
started by torchrun is alone and shares nothing.
"""

from __future__ import annotations

import io
import os
import platform
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

Value = TypeVar("Value")

_ROLL_SECONDS = 0.01
"""Between two looks at who is there."""
_PARENT_SECONDS = 1.0
"""Between two looks at whether torchrun is there."""


class LostProcessError(RuntimeError):
    """Another process is gone, so that this one cannot go on; torchrun starts all of them again, if it may."""


class FirstProcessError(RuntimeError):
    """The first process could not do what the others wait for; it says why."""


class Processes:
    """The processes of a run, as one of them sees them.

    Whether one process computes something for all, or each for itself, the result is the same on a CPU. On a GPU the
    order of sums varies, so that the processes' copies of the weights can differ in their last bit.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        """
        Args:
            rank: number of this process; the first, 0, keeps the run's folder.
            size: how many there are.
        """
        self.rank = rank
        self.size = size

    @property
    def first(self) -> bool:
        """Whether this is the process that keeps the run's folder and talks to people."""
        return self.rank == 0

    def mine(self, count: int) -> range:
        """Indices of this process's share of ``count`` things: one range, as long as the others' give or take one."""
        return self.share_of(self.rank, count)

    def share_of(self, rank: int, count: int) -> range:
        """Indices of a process's share of ``count`` things."""
        return range(rank * count // self.size, (rank + 1) * count // self.size)

    def gather(self, own: Tensor | None, rows: Sequence[int], device: torch.device) -> Tensor:
        """Rows of all processes, concatenated in their order; sent through the CPU as float64, which keeps every bit.

        Args:
            own: ``[rows of this process, width]``; None where it has none.
            rows: how many rows each process has.
            device: where to.

        Returns:
            ``[sum of rows, width]`` in float64

        Raises:
            LostProcessError: another process is gone.
        """
        if self.size == 1:
            assert own is not None
            return own.to(device, torch.float64)
        width = torch.tensor([0 if own is None else own.shape[1]], device="cpu")
        with _or_lost():
            distributed.all_reduce(width, distributed.ReduceOp.MAX)
        sent = torch.zeros(max(rows), int(width), dtype=torch.float64, device="cpu")
        if own is not None:
            sent[: len(own)] = own
        received = [torch.empty_like(sent) for _ in range(self.size)]
        with _or_lost():
            distributed.all_gather(received, sent)
        return torch.cat([part[:count] for part, count in zip(received, rows, strict=True)]).to(device)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in place, all in one message.

        Raises:
            LostProcessError: another process is gone.
        """
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        if not flat.is_cuda:  # gloo takes nothing of other devices
            flat = flat.cpu()
        with _or_lost():
            distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process.

        Raises:
            LostProcessError: another process is gone.
        """
        if self.size == 1:
            return flag
        flags = torch.tensor([int(flag)], device="cpu")
        with _or_lost():
            distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        return bool(flags)

    def share(self, compute: Callable[[], Value]) -> Value:
        """What the first process computes, in all of them.

        Raises:
            LostProcessError: another process is gone.
            FirstProcessError: in the others, where ``compute`` raised an error in the first.
        """
        if self.size == 1:
            return compute()
        message: list[Any] = [None, False]
        if self.first:
            try:
                message = [compute(), True]
            except Exception:
                with _or_lost():
                    distributed.broadcast_object_list(message)
                raise
        with _or_lost():
            distributed.broadcast_object_list(message)
        if not message[1]:
            raise FirstProcessError
        value: Value = message[0]
        return value

    def share_state(self, state: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The first process's state in all of them, tensors on the CPU; errors as in :meth:`share`."""

        def packed() -> bytes:
            buffer = io.BytesIO()
            torch.save(dict(state()), buffer)
            return buffer.getvalue()

        unpacked: dict[str, Any] = torch.load(io.BytesIO(self.share(packed)), map_location="cpu", weights_only=True)
        return unpacked


@contextmanager
def _or_lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0].partition(" This is ")[0]
        raise LostProcessError(f"another process of this run is gone ({reason})") from error


def rank_here() -> int:
    """Number of this process; 0 where there is only one."""
    return int(os.environ.get("RANK", "0"))


def size_here() -> int:
    """How many processes torchrun started with this one; 1 where it did not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def join() -> Iterator[Processes]:
    """Within the block, the processes that torchrun started with this one; alone where it did not.

    They communicate by gloo; tensors on GPUs by NCCL if each process has a GPU of its own, which ``cuda`` then is.
    """
    size = size_here()
    if size == 1:
        yield Processes()
        return
    # Training imports it. It has functions with the group of all processes, if there is one by then, as a default: that
    # would never be destroyed, and its threads could let go of a tensor while Python ends, which aborts the process.
    import torch._dynamo
    from torch.distributed.rendezvous import rendezvous

    gpus, neighbours = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % gpus)
    with _or_lost():
        store, rank, size = next(rendezvous("env://"))
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus >= neighbours else "gloo",
            store=_assembled(store, rank, size),
            rank=rank,
            world_size=size,
        )
    over = threading.Event()
    threading.Thread(target=_stop_with, args=(os.getppid(), over), daemon=True).start()
    try:
        yield Processes(rank, size)
    finally:
        over.set()
        distributed.destroy_process_group()


def _stop_with(parent: int, over: threading.Event) -> None:
    """Ask this process to stop when torchrun is gone before it is over: nobody else would."""
    while os.getppid() == parent:
        if over.wait(_PARENT_SECONDS):
            return
    os.kill(os.getpid(), signal.SIGTERM)


def _assembled(store: Any, rank: int, size: int) -> Any:
    """A part of torchrun's store that no earlier start has written to.

    After a restart the store still holds the addresses of processes that are gone. So every process writes down a name
    of its own, and the first one calls the roll until each has answered to the name that it has now.
    """
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    own = uuid.uuid4().hex
    store.set(f"name {rank}", own)
    if rank == 0:
        answered = False
        while not answered:
            names = [store.get(f"name {other}").decode() for other in range(size)]
            store.set("roll", " ".join(names))
            answered = all(store.check([f"{own} {name}"]) for name in names[1:])
            time.sleep(_ROLL_SECONDS)
        return PrefixStore(own, store)
    roll: list[str] = []
    while own not in roll:
        roll = store.get("roll").decode().split()
        time.sleep(_ROLL_SECONDS)
    store.set(f"{roll[0]} {own}", "here")
    return PrefixStore(roll[0], store)


def launch() -> str | None:
    """Name of this launch by torchrun, the same after each of its restarts; None without torchrun.

    It is the id that was given as ``--rdzv-id`` (or that ``--standalone`` made up), else the process of torchrun.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name != "none":
        return name
    parent = os.getppid()
    status = Path(f"/proc/{parent}/stat")
    # Field 22, counted after the name in brackets, is when the process began.
    began = status.read_text().rpartition(")")[2].split()[19] if status.exists() else ""
    return f"{platform.node()} {parent} {began}".rstrip()
