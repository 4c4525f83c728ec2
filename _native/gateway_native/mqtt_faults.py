"""How a peer can break the protocol."""

from __future__ import annotations

from typing import Final

# MQTT 5 reason code, and the sentence that a log line says after "closed:"; FAULT_* in mqtt.pxd are indexes.
FAULTS: Final[tuple[tuple[int, str], ...]] = (
    (0x00, "nothing is wrong"),
    (0x82, "the first packet is not the one that opens a connection"),
    (0x82, "a packet of a type that its side does not send"),
    (0x81, "reserved flags of the fixed header are wrong"),
    (0x81, "the length of a packet is malformed"),
    (0x95, "a packet is larger than allowed"),
    (0x81, "a field reaches beyond the end of its packet"),
    (0x81, "a publish has QoS 3"),
    (0x9B, "a publish has QoS 2, which was not offered"),
    (0x81, "a publish with QoS 0 is marked as a duplicate"),
    (0x82, "a publish has an empty topic"),
    (0x81, "a topic is not UTF-8"),
    (0x81, "a topic contains U+0000"),
    (0x81, "a publish has a topic with + or #"),
    (0x82, "a publish or its release has packet identifier 0"),
    (0x81, "a publish has a property that a publish cannot have"),
    (0x82, "a publish has the same property twice"),
    (0x82, "a property of a publish has a value outside its range"),
    (0x81, "a property of a publish is not UTF-8, or contains U+0000"),
    (0x94, "a publish has a topic alias that was not offered"),
    (0x82, "a publish has a subscription identifier"),
    (0x93, "more publishes are unacknowledged than allowed"),
    (0x90, "no route takes the topic of a publish with QoS 1 or 2"),
    (0x97, "no memory is left for a packet that arrives"),
    (0x95, "a publish would become a record larger than allowed"),
    (0x82, "a publish uses a topic alias that was not set before"),
    (0x97, "the topics of a connection's aliases need more memory than allowed"),
    (0x87, "a publish to a topic that its client must not publish to"),
    (0x97, "the gateway cannot follow, and the route of a publish drops what is newest"),
    (0x81, "a release of a publish has a reason code that it cannot have"),
)


class RemoteFault(Exception):
    """The peer broke the protocol, or asked for what is not offered; the only error that received bytes can cause.

    ``reason`` is the MQTT 5 reason code to answer with, ``cause`` what a log line says. Neither holds anything that
    the peer sent.
    """

    def __init__(self, reason: int, cause: str) -> None:
        super().__init__(f"{cause} (reason code 0x{reason:02X})")
        self.reason = reason
        self.cause = cause
