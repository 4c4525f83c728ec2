"""Session descriptions as cameras write them (RFC 8866; RTSP's part: RFC 2326, appendix C). No I/O.

Read leniently: a line that makes no sense is passed over, since a camera whose video can be recorded should be. What is
needed (a video track of a known codec, and how to address it) is either there or the description is refused with a
sentence. Formats: H.264 is RFC 6184 (section 8.1), H.265 RFC 7798 (section 7.1), JPEG RFC 2435.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit

from gateway import nal
from gateway_adapters.rtsp.failures import Failure, RemoteFault, shown

LINES_MAX = 1_000
TRACKS_MAX = 32
# Of one track.
FORMATS_MAX = 32
URL_CHARACTERS_MAX = 2_048
# All parameter sets of a track together; real ones have 30 to 200 bytes.
SETS_BYTES_MAX = 16_384
FPS_MAX = 1_000.0
# RTP has seven bits for a payload type, JPEG sixteen for a side.
PAYLOAD_TYPE_MAX = 127
SIDE_PIXELS_MAX = 65_535

# Encoding names of RTP payload formats, as the records call the codecs.
CODECS = {"H264": "h264", "H265": "h265", "HEVC": "h265", "JPEG": "jpeg"}
# RFC 3551, table 5: what needs no rtpmap.
_STATIC = {26: ("JPEG", 90_000), 32: ("MPV", 90_000), 0: ("PCMU", 8_000), 8: ("PCMA", 8_000)}
_CLOCK_HZ = 90_000

_MEDIA = re.compile(r"(\w+)\s+\S+\s+(\S+)\s*(.*)")
_RTPMAP = re.compile(r"([0-9]{1,3})\s+([^/\s]+)(?:/([0-9]{1,8}))?")
_FMTP = re.compile(r"([0-9]{1,3})\s+(.*)")
_NUMBER = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,9})?")
_SIZE = re.compile(r"(?:[0-9]{1,3}\s+)?([0-9]{1,5})[-,x]([0-9]{1,5})")


@dataclass
class Track:
    """One m= section. control: the URL for SETUP. encoding: the payload format's name in capitals, "" if not given.

    parameter_sets: NAL units out of the description. fps: as the camera claims, which is often wrong; None if it does
    not. size: (width, height) in pixels as claimed.
    """

    kind: str
    payload_type: int = -1
    encoding: str = ""
    clock_hz: int = _CLOCK_HZ
    control: str = ""
    parameter_sets: tuple[bytes, ...] = ()
    fps: float | None = None
    size: tuple[int, int] | None = None
    parameters: dict[str, str] = field(default_factory=dict)

    @property
    def codec(self) -> str | None:
        """As records name it; None: not one that can be recorded."""
        return CODECS.get(self.encoding)

    @property
    def described(self) -> str:
        """For people: "video H264", "audio MPEG4-GENERIC"."""
        return f"{shown(self.kind)} {shown(self.encoding)}".rstrip()


@dataclass(frozen=True)
class Description:
    """control: the URL for PLAY and TEARDOWN. tracks: in the camera's order."""

    control: str
    tracks: tuple[Track, ...]
    name: str = ""

    @property
    def chosen(self) -> Track | None:
        """The track to record: the first video of a known codec."""
        known = (track for track in self.tracks if track.kind == "video" and track.codec is not None)
        return next((track for track in known if not _interleaved_donl(track)), None)

    def video(self) -> Track:
        """The track to record. Raises Failure, which says what there is instead."""
        if (track := self.chosen) is not None:
            return track
        offered = ", ".join(track.described for track in self.tracks) or "nothing"
        if any(track.kind == "video" for track in self.tracks):
            raise Failure("unsupported", f"its video cannot be recorded ({offered}); H.264, H.265 and MJPEG can")
        raise Failure("unsupported", f"the camera offers no video track ({offered})")


def parse(body: bytes, base: str) -> Description:
    """A camera's description. base: what relative addresses are relative to. Raises RemoteFault."""
    lines = re.split(r"\r\n|\n|\r", _text(body))
    if len(lines) > LINES_MAX:
        raise RemoteFault(f"the camera's session description has over {LINES_MAX} lines")
    top, sections = _sections(lines)
    session_control = next((value for name, value in _attributes(top) if name == "control"), "")
    control = joined(base, session_control)
    tracks = [_track(section, control) for section in sections]
    name = next((shown(value) for kind, value in top if kind == "s"), "")
    return Description(control, tuple(track for track in tracks if track is not None), name)


def joined(base: str, control: str) -> str:
    """A control attribute as a URL. Raises RemoteFault when it makes none.

    A relative one is appended, behind a query, too: that is what cameras expect, since clients have always done so. By
    RFC 1808 it would replace the last part of the path.
    """
    url = _joined(base, control)
    if not is_url(url):
        raise RemoteFault(f"the camera names an address that is none ({shown(control or base)!r})")
    return url


def _joined(base: str, control: str) -> str:
    if control in ("", "*"):
        return base
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", control):
        return control
    if not control.startswith("/"):
        return f"{base}{'' if base.endswith('/') else '/'}{control}"
    try:
        return urljoin(base, control)
    except ValueError:  # "//[": the beginning of an IPv6 address, and no more
        return ""


def is_url(url: str) -> bool:
    """Fit to stand in a request line, and of RTSP."""
    if len(url) > URL_CHARACTERS_MAX or any(ord(character) <= 32 or ord(character) == 127 for character in url):
        return False
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    return parts.scheme.lower() in ("rtsp", "rtsps", "rtspu") and bool(parts.hostname) and port != 0


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body.decode("latin-1")


def _sections(lines: list[str]) -> tuple[list[tuple[str, str]], list[list[tuple[str, str]]]]:
    """Types and values of the lines before the first m=, and those of each m= section."""
    top: list[tuple[str, str]] = []
    sections: list[list[tuple[str, str]]] = []
    for line in lines:
        kind, equals, value = line.strip().partition("=")
        if not equals:
            continue
        if kind == "m":
            sections.append([])
            if len(sections) > TRACKS_MAX:
                raise RemoteFault(f"the camera offers over {TRACKS_MAX} tracks")
        (sections[-1] if sections else top).append((kind, value.strip()))
    return top, sections


def _attributes(section: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Names, in lower case, and values of the a= lines."""
    parts = [value.partition(":") for kind, value in section if kind == "a"]
    return [(name.strip().lower(), value.strip()) for name, _, value in parts]


def _track(section: list[tuple[str, str]], base: str) -> Track | None:
    """One m= section, its first line first; None if that cannot be read. Of several formats the first that can be
    recorded is taken."""
    found = _MEDIA.match(section[0][1])
    if found is None:
        return None
    listed = found[3].split()[:FORMATS_MAX]
    announced = [int(each) for each in listed if re.fullmatch("[0-9]{1,3}", each) and int(each) <= PAYLOAD_TYPE_MAX]
    track = Track(found[1].lower())
    maps: dict[int, tuple[str, int]] = {}
    formats: dict[int, str] = {}
    attributes = _attributes(section)
    for name, value in attributes:
        if name == "rtpmap" and (entry := _RTPMAP.match(value)) and int(entry[1]) <= PAYLOAD_TYPE_MAX:
            maps.setdefault(int(entry[1]), (entry[2].upper(), int(entry[3] or _CLOCK_HZ)))
        elif name == "fmtp" and (entry := _FMTP.match(value)):
            formats.setdefault(int(entry[1]), entry[2])
        else:
            _claim(track, name, value)
    # Some cameras' rtpmap is of another number than their m= line; the rtpmap is right then.
    numbers = [number for number in announced if number in maps or number in _STATIC] or list(maps)
    chosen = next((n for n in numbers if _encoding(n, maps)[0] in CODECS), numbers[0] if numbers else None)
    if chosen is not None:
        track.payload_type = chosen
        track.encoding, track.clock_hz = _encoding(chosen, maps)
        track.parameters = _parameters(formats.get(chosen, ""))
        track.parameter_sets = _parameter_sets(track)
    track.control = joined(base, next((value for name, value in attributes if name == "control"), ""))
    return track


def _encoding(number: int, maps: dict[int, tuple[str, int]]) -> tuple[str, int]:
    return maps.get(number) or _STATIC.get(number, ("", _CLOCK_HZ))


def _claim(track: Track, name: str, value: str) -> None:
    """What the camera says about its pictures. Believed by nobody, shown by `probe`."""
    if name in ("framerate", "x-framerate") and (found := _NUMBER.match(value)):
        fps = float(found[0])
        track.fps = fps if 0 < fps <= FPS_MAX and math.isfinite(fps) else None
    elif name in ("framesize", "x-dimensions") and (found := _SIZE.match(value)):
        size = (int(found[1]), int(found[2]))
        track.size = size if all(0 < side <= SIDE_PIXELS_MAX for side in size) else None


def _parameters(text: str) -> dict[str, str]:
    """``a=1; b=2`` with names in lower case; values keep their equals signs (base64 ends with them)."""
    found: dict[str, str] = {}
    for part in text.split(";"):
        name, equals, value = part.partition("=")
        if equals:
            found.setdefault(name.strip().lower(), value.strip().strip('"'))
    return found


def _parameter_sets(track: Track) -> tuple[bytes, ...]:
    """The sets of a track; those that cannot be read are left out, since cameras send them in-band, too."""
    codec = nal.CODECS.get(track.codec or "")
    if codec is None:
        return ()
    names = ("sprop-parameter-sets",) if track.codec == "h264" else ("sprop-vps", "sprop-sps", "sprop-pps")
    texts = [text for name in names for text in track.parameters.get(name, "").split(",")]
    units = [unit for text in texts for unit in _decoded(text.strip())]
    # One byte behind the header, at least: the id of the set is there.
    whole = [unit for unit in units if len(unit) > codec.header_bytes]
    found = tuple(codec.parameter_sets(whole))
    return found if sum(map(len, found)) <= SETS_BYTES_MAX else ()


def _decoded(text: str) -> list[bytes]:
    """Base64 with or without padding; some cameras put start codes in front of their sets."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return []
    if data.startswith((b"\0\0\1", b"\0\0\0\1")):
        return [unit for unit in nal.split(data) if unit]
    return [data] if data else []


def _interleaved_donl(track: Track) -> bool:
    """Units in another order than decoding order: neither cameras nor we do that (RFC 6184, mode 2; RFC 7798, DONL)."""
    if track.codec == "h264":
        return track.parameters.get("packetization-mode") == "2"
    return track.parameters.get("sprop-max-don-diff", "0") not in ("", "0")
