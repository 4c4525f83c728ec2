"""What a simulated camera does wrong, or differently from others: asked for in the query of its URL. No I/O.

    rtsp://127.0.0.1:8554/cam-1?loss=1&switch=3&seed=7

Every client gets the faults of its own URL, counted from the beginning of its session. Where a number of access units
is given, the fault comes before the access unit of that number; the first, which is a key frame, has number 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import parse_qsl

from gateway.simulate.coded import Form
from gateway.simulate.rtp import PAYLOAD_BYTES_MAX

_NUMBER_MAX = 1_000_000_000


def _fault(default: Any, least: float, most: float, help_text: str) -> Any:
    return field(default=default, metadata={"least": least, "most": most, "help": help_text})


def _percent(help_text: str) -> Any:
    return _fault(0.0, 0, 100, help_text)


def _at(help_text: str) -> Any:
    return _fault(None, 0, _NUMBER_MAX, help_text)


def _switch(help_text: str, default: bool = False) -> Any:
    return _fault(default, 0, 1, help_text)


@dataclass(frozen=True, slots=True)
class Faults:
    """The faults of one session. What is None or has its default does not happen."""

    # packets
    loss: float = _percent("percent of the RTP packets that are lost, at random")
    burst: int = _fault(1, 1, 1000, "how many packets in a row are lost each time")
    duplicate: float = _percent("percent of the RTP packets that are sent twice")
    reorder: float = _percent("percent of the RTP packets that are sent after the one that follows them")
    seed: int = _fault(0, 0, _NUMBER_MAX, "of the random numbers: the same seed loses the same packets")
    seq: int | None = _fault(None, 0, 0xFFFF, "first sequence number; 65530 wraps soon")
    rtp: int | None = _fault(None, 0, 0xFFFFFFFF, "first RTP time stamp; 4294900000 wraps soon")
    mtu: int = _fault(PAYLOAD_BYTES_MAX, 64, 60_000, "largest RTP payload in bytes")
    # access units
    sei: bool = _switch("1: the marker bit also on an SEI message before the picture")
    aud: bool = _switch("1: access unit delimiters")
    aggregate: bool = _switch("1: small NAL units travel together (STAP-A, AP)")
    inband: bool = _switch("0: parameter sets in the session description only", default=True)
    switch: int | None = _fault(None, 1, _NUMBER_MAX, "parameter sets and size change every so many key frames")
    # time
    jump: float = _fault(0.0, -1e6, 1e6, "seconds the RTP time stamps jump by, either way")
    jump_at: int = _fault(50, 1, _NUMBER_MAX, "access unit of the jump")
    ssrc: int | None = _at("access unit from which on another SSRC and other time stamps are sent")
    report: float = _fault(2.0, 0, 1e6, "seconds between sender reports; 0: none")
    first_report: float = _fault(0.0, 0, 1e6, "seconds until the first sender report")
    clock: float = _fault(0.0, -1e9, 1e9, "seconds the camera's wall clock is ahead")
    # the connection
    chunk: int | None = _fault(None, 1, _NUMBER_MAX, "bytes of a send: cuts everything in odd places")
    text: int | None = _fault(None, 1, _NUMBER_MAX, "a request of the server's between the packets every so many units")
    garbage: int | None = _at("access unit before which bytes come that are no RTSP")
    stall: int | None = _at("access unit from which on nothing is sent; requests are answered")
    stall_s: float = _fault(0.0, 0, 1e6, "seconds after which a stalled camera goes on; 0: never")
    freeze: int | None = _at("access unit from which on nothing is sent or read any more, connection open")
    close: int | None = _at("access unit before which the connection is closed without a word")
    bye: int | None = _at("access unit before which the stream ends with an RTCP BYE, connection open")
    # the session
    fps: float | None = _fault(None, 0.01, 1e6, "frame rate the session description tells, whatever it is")
    sprop: bool = _switch("0: no parameter sets in the session description", default=True)
    audio: bool = _switch("1: an audio track (PCMU) before the video")
    control: str = field(default="relative", metadata={"help": "absolute: whole track URLs; query: no Content-Base"})
    redirect: int = _fault(0, 0, 100, "how many times DESCRIBE sends the client elsewhere (302)")
    delay: float = _fault(0.0, 0, 3600, "seconds until each reply")
    timeout: int | None = _fault(None, 1, 86_400, "session time-out in seconds")

    @classmethod
    def parse(cls, query: str) -> Faults:
        """Read a URL's query. Raises ValueError with a sentence that says what is not understood."""
        known = {each.name: each for each in fields(cls)}
        given: dict[str, Any] = {}
        for name, text in parse_qsl(query, keep_blank_values=True, max_num_fields=len(known)):
            if name not in known:
                raise ValueError(f"{name!r} is no fault of a simulated camera; there are {', '.join(known)}.")
            given[name] = _control(text) if name == "control" else _number(name, text, known[name])
        return cls(**given)

    @property
    def form(self) -> Form:
        """How access units are sent."""
        return Form(self.mtu, self.inband, self.aud, self.sei, self.aggregate)

    @property
    def alters_packets(self) -> bool:
        """Whether packets go astray, so that they must be looked at one by one."""
        return bool(self.loss or self.duplicate or self.reorder)


def _control(text: str) -> str:
    if text not in ("relative", "absolute", "query"):
        raise ValueError(f"control={text} is none of relative, absolute, query.")
    return text


def _number(name: str, text: str, known: Any) -> Any:
    kind = known.type.split(" ")[0]
    least, most = known.metadata["least"], known.metadata["most"]
    try:
        value: float = float(text) if kind == "float" else int(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise ValueError(f"{name}={text} is no number from {least:g} to {most:g}.")
    return bool(value) if kind == "bool" else value


def table() -> list[tuple[str, str]]:
    """(name, what it does) of each fault, in order."""
    return [(each.name, each.metadata["help"]) for each in fields(Faults)]
