"""What simulated cameras sent beside what was recorded: byte for byte, loss for loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.simulate.coded import digest
from tests.integration.camera_gateway import headers


class SentUnit(Protocol):
    """`gateway.simulate.journal.Sent`, or a line of a journal file."""

    @property
    def digest(self) -> str: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def packets(self) -> int: ...
    @property
    def lost(self) -> int: ...


@dataclass(frozen=True)
class Comparison:
    """One connection's. Indexes are those of what was sent.

    recorded: how many access units were. missing: sent, but not recorded. changed: recorded with other bytes and not
    flagged as damaged. flagged: recorded and flagged. lost_packets: counted in the records; lost_made: made up to the
    last access unit of which every packet went out, as nobody can know of losses behind it.
    """

    recorded: int
    missing: list[int]
    changed: list[int]
    flagged: list[int]
    lost_packets: int
    lost_made: int


def compare(sent: Sequence[SentUnit], records: Sequence[Any]) -> Comparison:
    """Both in order, of one connection; records: as a stream gives them, made by the native engine.

    A record belongs to what was sent with its RTP time stamp, which no two have.
    """
    pictures = [record for record in records if "codec" in headers(record)]
    at = {unit.timestamp & 0xFFFFFFFF: index for index, unit in enumerate(sent)}
    assert len(at) == len(sent), "two access units with one time stamp cannot be told apart"
    found: dict[int, Any] = {at[int(headers(record)["pts"]) & 0xFFFFFFFF]: record for record in pictures}
    assert len(found) == len(pictures), "an access unit was recorded twice"
    known = _known(sent, max(found))
    changed, flagged = [], []
    for index, record in found.items():
        if "damaged" in headers(record):
            flagged.append(index)
        elif digest(headers(record)["codec"], record.value or b"") != sent[index].digest:
            changed.append(index)
    return Comparison(
        recorded=len(found),
        missing=[index for index in range(max(found) + 1) if index not in found],
        changed=changed,
        flagged=flagged,
        lost_packets=sum(
            int(headers(record).get("lost_packets", 0)) for index, record in found.items() if index <= known
        ),
        lost_made=sum(unit.lost for unit in sent[: known + 1]),
    )


def _known(sent: Sequence[SentUnit], last: int) -> int:
    """The last access unit up to which all losses are known: one that is whole, so that its numbers close the hole."""
    return max(index for index, unit in enumerate(sent[: last + 1]) if not unit.lost)
