"""The processes that write one cache, or make one stream, together: by rank, and alone where there is one.

For a cache the first one leads and the others follow; of a stream each makes its share, and they exchange them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from saelab.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that torch.distributed has joined."""

    rank: int = 0
    world: int = 1

    @classmethod
    def current(cls) -> "Ranks":
        """As torch.distributed has it; alone where it was not started."""
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def run(self, lead: Callable[[], None], follow: Callable[[Any], None]) -> None:
        """Rank 0 runs `lead`; the others run `follow(work)` for everything it hands out with `hand_out`, until it ends.

        If `lead` raises, the others raise a UserError with its message.
        """
        if self.rank:
            failure: BaseException | None = None
            while (message := self._receive(None))[0] == "work":
                try:
                    follow(message[1])
                except BaseException as error:  # kept until the leader has said its last word
                    failure = error
            if failure is not None:
                raise failure
            if message[0] == "error":
                raise UserError(*message[1])
            return
        try:
            lead()
        except BaseException as error:
            self._receive(("error", _describe(error)))
            raise
        self._receive(("end", None))

    def hand_out(self, work: Any) -> None:
        """Rank 0 gives all others the same work (plain values)."""
        self._receive(("work", work))

    def together(self, action: Callable[[], T]) -> T:
        """What `action` returns here, once it has run in every process; raises in all where it failed in one."""
        own: BaseException | None = None
        try:
            result = action()
        except BaseException as error:  # the others hear of it first: they would wait for ever
            own = error
        failures = self.gather(None if own is None else _describe(own))
        if own is not None:
            raise own
        for rank, failure in enumerate(failures):
            if failure is not None:
                setting, value, expected, remedy = failure
                raise UserError(setting, value, f"{expected} (in process {rank})", remedy)
        return result

    def agree(self, *facts: Any) -> None:
        """Raise UserError in all processes where their facts (plain values) differ: they would mix up their tokens."""
        if any(other != facts for other in self.gather(facts)):
            what = "the processes want different tokens of it at the same time"
            raise UserError("stream", f"process {self.rank} of {self.world}", what, "all have to take the same steps")

    def edges(self, count: int) -> list[int]:
        """Where the processes' shares of `count` things begin, as even as can be; and last, where they end."""
        return [rank * count // self.world for rank in range(self.world + 1)]

    def copy_from(self, rank: int, tensor: Tensor) -> Tensor:
        """The process' tensor of that rank (one shape and dtype), in place; the group has to serve its device."""
        import torch.distributed as dist

        dist.broadcast(tensor.view(torch.uint8), src=rank)  # to the bit, and gloo and nccl know few dtypes
        return tensor

    def _receive(self, message: Any) -> Any:
        if self.world == 1:
            return message
        import torch.distributed as dist

        box = [message]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The processes' values (plain ones, small), by rank."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values


def _describe(error: BaseException) -> tuple[str, str, str, str]:
    if isinstance(error, UserError):
        return error.setting, str(error.value), error.expected, error.remedy
    return "process", type(error).__name__, " ".join(str(error).split())[:300] or "ended", "run again: it resumes"
