"""What a conductor asks of the world, after it has stored why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fedpalm.rounds.events import Aggregate, RoundRef, TimerKind
from fedpalm.wire.v1 import federation_pb2 as pb


class Outside(Protocol):
    """Carried out by the event loop in a process, by the test in a simulation."""

    def instruct(self, site: str, instruction: pb.Instruction) -> None:
        """Tell a site, if it is connected; it is told again what it needs when it comes back."""

    def set_timer(self, run_id: str, ref: RoundRef, kind: TimerKind, at_ms: int) -> None:
        """Call ``Conductor.timer_rang`` then; replaces the run's earlier timer."""

    def aggregate(self, run_id: str, effect: Aggregate) -> None:
        """Form the sum, then call ``Conductor.aggregated`` or ``aggregation_failed``.

        Of a masked attempt, take off what ``MaskingDesk.collection`` gives (``Collection.corrections``).
        Of a lost round, make the changed model (:func:`coordinator.aggregate.change`).
        """

    def try_again(self, action: Callable[[], None]) -> None:
        """Call it after a while, and again while it raises ResourceError; a restart forgets it."""

    def require_room(self, needed_bytes: int, what: str) -> None:
        """Raises ResourceError if the disk has not so much."""

    def round_closed(self, run_id: str, ref: RoundRef) -> None:
        """The attempt's updates are not needed any more."""

    def changed(self, run_id: str) -> None:
        """The status of the run is another one."""
