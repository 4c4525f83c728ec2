"""The configuration: what is accepted, and that everything else is named precisely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Config, data_directory, from_dict, load, warnings
from gateway.config.values import SESSIONS_STREAM
from gateway.errors import ConfigError

MINUTE_NS = 60_000_000_000


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Writes a file below tmp_path and returns its path."""

    def write_file(text: str, name: str = "gateway.toml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def problems(path: Path) -> list[str]:
    """What is wrong with a file, each sentence without the directory in front."""
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.exit_code == 3
    return [problem.removeprefix(f"{path.parent}/") for problem in caught.value.problems]


FULL = """
data = "data"

[site]
name = "plant-7"
timezone = "Europe/Berlin"

[disk]
reserve = "2GiB"

[streams.telemetry]
retention = ["30d", "100GiB"]
ack = "memory"
linger = "20ms"
when_full = "refuse"

[mqtt.listeners.devices]
bind = "127.0.0.1:1883"
routes = [{ filter = "plant/#", stream = "telemetry" }]

[mqtt.subscribers.broker]
url = "mqtts://broker.local"
username = "gateway"
password_file = "secret"
routes = [{ filter = "plant/#", stream = "telemetry", qos = 0 }]

[cameras.gate-1]
url = "rtsp://10.0.0.11/main?stream=1"
username = "viewer"
password = "${TEST_GATE_PASSWORD}"

[cameras.gate-2]
url = "rtsp://10.0.0.12/main"
stream = "north"
"""


def test_the_documented_configuration_loads(write: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every key of the documentation is read, with its unit, and what is left out has its default."""
    monkeypatch.setenv("TEST_GATE_PASSWORD", "from the environment")
    write("from the file\n", "secret")
    config = load(write(FULL))
    assert config.data == tmp_path / "data"
    assert str(config.site.zone) == "Europe/Berlin"
    assert config.disk.reserve_bytes == 2 * 2**30
    telemetry = config.stream("telemetry")
    assert (telemetry.ack, telemetry.linger_ns, telemetry.when_full) == ("memory", 20_000_000, "refuse")
    assert telemetry.retention.age_ns == 30 * 24 * 60 * MINUTE_NS
    assert telemetry.retention.size_bytes == 100 * 2**30
    assert telemetry.segment_age_ns == telemetry.retention.age_ns // 8
    assert config.stream("never named").linger_ns == 5_000_000
    listener = config.mqtt.listeners["devices"]
    assert (listener.host, listener.port, listener.subscribe) == ("127.0.0.1", 1883, "refuse")
    broker = config.mqtt.subscribers["broker"]
    assert (broker.host, broker.port, broker.tls, broker.routes[0].qos) == ("broker.local", 8883, True, 0)
    assert broker.password is not None
    assert broker.password.get_secret_value() == "from the file"
    camera = config.cameras["gate-1"]
    assert camera.password is not None
    assert camera.password.get_secret_value() == "from the environment"
    assert (camera.stream, config.cameras["gate-2"].stream) == ("gate-1", "north")
    assert list(config.sources()) == ["devices", "broker", "gate-1", "gate-2"]


def test_secrets_are_not_shown(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No way of printing a configuration shows a password."""
    monkeypatch.setenv("TEST_GATE_PASSWORD", "hunter2")
    write("hunter2", "secret")
    config = load(write(FULL))
    for shown in (repr(config), str(config), config.model_dump_json(), str(config.model_dump())):
        assert "hunter2" not in shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('data = "d"\n[sit]\n', "gateway.toml:2: sit: unknown key; did you mean 'site'?"),
        (
            'data = "d"\n[streams.t]\n\nlingr = "5ms"\n',
            "gateway.toml:4: streams.t.lingr: unknown key; did you mean 'linger'?",
        ),
        (
            'data = "d"\n[streams]\nt = {\tlingr = "5ms" }\n',
            "gateway.toml:3: streams.t.lingr: unknown key; did you mean",
        ),
        (
            'data = "d"\nstreams.t.linger = "5 parsecs"\n',
            "gateway.toml:2: streams.t.linger: '5 parsecs' has an unknown unit",
        ),
        ('data = "d"\n[streams.t]\nlinger = 5\n', "gateway.toml:3: streams.t.linger: A duration needs a unit"),
        ('data = "d"\n[streams.t]\nlinger = "1h"\n', "gateway.toml:3: streams.t.linger: must be at most 10 s"),
        (
            'data = "d"\n[streams.t]\nack = "dsk"\n',
            "gateway.toml:3: streams.t.ack: must be 'disk' or 'memory', not 'dsk'",
        ),
        ('data = "d"\n[streams.t]\nsegment_size = "1KiB"\n', "segment_size: must be at least 1.00 MiB"),
        ('data = "d"\n[streams."a b"]\n', "gateway.toml:2: streams.\"a b\": 'a b' is not a usable name"),
        ('data = "d"\n[streams.".."]\n', "gateway.toml:2: streams.\"..\": '..' is not a usable name"),
        ("data = 5\n", "gateway.toml:1: data: must be"),
        ("[site]\n", "gateway.toml: 'data' is missing"),
        (
            'data = "d"\n[site]\ntimezone = "Berlin"\n',
            "gateway.toml:3: site.timezone: there is no time zone 'Berlin'; did you mean",
        ),
        ('data = "d"\nsite = 5\n', "gateway.toml:2: site: must be a table"),
        ('data = "d"\n[kafka]\nbind = "x"\n', "gateway.toml:3: kafka.bind: 'x' is not host:port"),
        ('data = "d"\n[kafka]\nbind = "0.0.0.0:9092"\n', "gateway.toml:3: kafka.bind: is reachable from other"),
        (
            'data = "d"\n[kafka]\nbind = "127.0.0.1:9092"\nadvertise = "0.0.0.0:9092"\n',
            "gateway.toml:4: kafka.advertise: '0.0.0.0:9092' is no place to come to",
        ),
        (
            'data = "d"\n[kafka]\nbind = "127.0.0.1:9092"\nproduce = ["__x"]\n',
            "gateway.toml:4: kafka.produce[0]: '__x' begins with '__'",
        ),
        (
            'data = "d"\n[kafka]\nbind = "127.0.0.1:9092"\nusers_file = "absent"\n',
            "gateway.toml:4: kafka.users_file: there is no file",
        ),
        ('data = "d"\n[limits]\nring = "48MiB"\n', "gateway.toml:3: limits.ring: must be a power of two"),
        ('data = "d"\n[limits]\nmax_streams = 0\n', "gateway.toml:3: limits.max_streams: must be at least 1"),
        ('data = "d"\n[limits]\nmax_streams = "9"\n', "gateway.toml:3: limits.max_streams: must be a whole number"),
        ('data = "d"\ninclude = "x.toml"\n', "gateway.toml:2: include: must be a list"),
        ('data = "d"\n\ninclude = ["x.toml"]\n', "gateway.toml:3: include[0]: there is no file"),
        ('data = "d"\n[streams.t]\nretention = "0d"\n', "streams.t.retention: a retention of nothing"),
        ('data = "d"\n[streams.t]\nretention = ["1d", "2d"]\n', "retention takes at most one age and one size"),
    ],
)
def test_a_mistake_is_named_with_file_line_key_and_remedy(write: Any, text: str, expected: str) -> None:
    """Each mistake is one sentence that says where it is and what would be right."""
    found = problems(write(text))
    assert len(found) == 1, found
    assert expected in found[0]


LISTENER = 'data = "d"\n[mqtt.listeners.a]\nbind = "127.0.0.1:1883"\nroutes = [{ filter = "#", stream = "t" }]\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LISTENER.replace("127.0.0.1:1883", "1883"), "gateway.toml:3: mqtt.listeners.a.bind: '1883' is not host:port"),
        (LISTENER.replace("127.0.0.1:1883", "::1:1883"), "an IPv6 address stands in brackets"),
        (
            LISTENER.replace('"#"', '"a/#/b"'),
            "gateway.toml:4: mqtt.listeners.a.routes[0].filter: in 'a/#/b' '#' must be",
        ),
        (LISTENER.replace('"#"', '"a+/b"'), "'+' must be a whole level"),
        (LISTENER.replace('"#"', '""'), "routes[0].filter: a topic filter has 1 to 65535 bytes"),
        (LISTENER.replace('"#"', '"$share/g/#"'), "a shared subscription exists only at a broker"),
        (LISTENER.replace("[{ filter", "[{ qos = 1, filter"), "mqtt.listeners.a.routes[0].qos: unknown key"),
        (LISTENER.replace('"t"', '"{0}"'), "routes[0].stream: '{0}' is not a template for a stream's name"),
        (LISTENER.replace('"t"', '"{topic}"'), "'{topic}' is not a template for a stream's name"),
        (LISTENER.replace('"t"', '"a/{1}"'), "'a/{1}' is not a template for a stream's name"),
        (LISTENER.replace('"t"', '".."'), "'..' is not a usable name"),
        (LISTENER.replace('"t"', '"t", key = "{10}"'), "'{10}' is not a template for a key"),
        (LISTENER.replace('"t"', '"t", key = ""'), "'' is not a template for a key"),
        (LISTENER.replace('"t"', '"t", overload = "drop"'), "must be 'wait' or 'drop-newest', not 'drop'"),
        (
            LISTENER.replace('"#"', '"a/+"').replace('"t"', '"{3}"'),
            "gateway.toml:4: mqtt.listeners.a.routes[0]: {3} is never there: topics that match 'a/+' have 2 levels",
        ),
        (LISTENER + 'subscribe = "yes"\n', "must be 'refuse' or 'accept', not 'yes'"),
        (LISTENER + 'max_packet = "1GiB"\n', "must be at most 16.0 MiB"),
        (LISTENER.replace("routes", "# routes"), "gateway.toml:2: mqtt.listeners.a: 'routes' is missing"),
        (LISTENER.replace("[{ ", "[] # "), "gateway.toml:4: mqtt.listeners.a.routes: must hold at least one item"),
        (
            LISTENER.replace("}]", '},\n  { filter = "#", stream = "u" }]'),
            "gateway.toml:4: mqtt.listeners.a.routes[0].filter: '#' has two routes in one source",
        ),
    ],
)
def test_a_mistake_in_a_listener_is_named(write: Any, text: str, expected: str) -> None:
    """Listeners: addresses, filters, routes."""
    found = problems(write(text))
    assert len(found) == 1, found
    assert expected in found[0]


BROKER = 'data = "d"\n[mqtt.subscribers.b]\nurl = "mqtt://h"\nroutes = [{ filter = "#", stream = "t" }]\n'
CAMERA = 'data = "d"\n[cameras.c]\nurl = "rtsp://h/x"\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BROKER + 'password = "x"\n', "gateway.toml:2: mqtt.subscribers.b: has a password but no 'username'"),
        (BROKER + "qos = 2\n", "gateway.toml:5: mqtt.subscribers.b.qos: "),
        (
            BROKER.replace("stream =", "qos = 2, stream =") + 'engine = "aiomqtt"\n',
            'gateway.toml:4: mqtt.subscribers.b.routes[0].qos: engine = "aiomqtt" answers QoS 2 before it is on disk',
        ),
        (BROKER.replace("mqtt://h", "mqtt://h/path"), "the URL must end after host and port"),
        (BROKER.replace("mqtt://h", "tcp://h"), "the URL must start with mqtt:// or mqtts://"),
        (BROKER + 'tls_ca = "ca.pem"\n', "tls_ca: has no effect on mqtt://"),
        (BROKER.replace("mqtt:", "mqtts:") + 'tls_ca = "ca.pem"\n', "tls_ca: there is no file"),
        (BROKER + 'reconnect_min = "2m"\n', "gateway.toml:5: mqtt.subscribers.b.reconnect_min: is longer than"),
        (BROKER + 'username = "u"\npassword_file = "nope"\n', "password_file: "),
        (BROKER + 'username = "u"\npassword = "x"\npassword_file = "f"\n', "stands beside 'password'; keep one"),
        (
            BROKER + 'username = "${TEST_UNSET}"\n',
            "gateway.toml:5: mqtt.subscribers.b.username: the environment variable",
        ),
        (BROKER + 'username = "a${TEST_UNSET}"\n', "username: ${NAME} works only as the whole value"),
        (CAMERA + 'transport = "tpc"\n', "gateway.toml:4: cameras.c.transport: must be 'tcp' or 'udp', not 'tpc'"),
        (
            CAMERA + 'engine = "native"\ntransport = "udp"\n',
            "gateway.toml:4: cameras.c.engine: 'native' speaks rtsp:// over TCP only",
        ),
        (CAMERA.replace("rtsp:", "rtsps:") + 'engine = "native"\n', "'native' speaks rtsp:// over TCP only"),
        (CAMERA.replace("rtsp://h/x", "file://clip.mp4"), "gateway.toml:3: cameras.c.url: a file has an absolute path"),
        (CAMERA.replace("rtsp:", "ftp:"), "gateway.toml:3: cameras.c.url: the URL must start with rtsp://"),
        (CAMERA.replace("rtsp://h/x", "rtsp:///x"), "the URL must name a host"),
        (
            CAMERA + '[cameras.d]\nurl = "rtsp://h/y"\nstream = "c"\n',
            "gateway.toml:6: cameras.d.stream: cameras.c records in",
        ),
        (CAMERA + BROKER.partition("\n")[2].replace('"t"', '"c"'), "cameras.c records its pictures in 'c'"),
        (
            CAMERA + BROKER.partition("\n")[2].replace("s.b]", "s.c]"),
            "cameras.c: the name is taken by mqtt.subscribers.c",
        ),
    ],
)
def test_a_mistake_in_a_subscriber_or_camera_is_named(write: Any, text: str, expected: str) -> None:
    """Subscribers and cameras: addresses, credentials, contradictions."""
    found = problems(write(text))
    assert len(found) == 1, found
    assert expected in found[0]


@pytest.mark.parametrize(
    ("settings", "engine"),
    [
        ('url = "rtsp://h/x"', "native"),
        ('url = "rtsp://h/x"\nengine = "pyav"', "pyav"),
        ('url = "rtsp://h/x"\ntransport = "udp"', "pyav"),
        ('url = "rtsps://h/x"', "pyav"),
        ('url = "http://h/video.mjpg"', "pyav"),
        ('url = "file:///srv/clip.mp4"', "pyav"),
        ('url = "v4l2:///dev/video0"', "pyav"),
        ('url = "v4l2:///dev/v4l/by-id/usb-x?format=h264&size=1280x720&fps=30"', "pyav"),
    ],
)
def test_a_cameras_engine_is_the_one_that_can(write: Any, settings: str, engine: str) -> None:
    """Native wherever it speaks the camera's language; libav else, or where it is asked for."""
    assert load(write(f'data = "d"\n[cameras.c]\n{settings}\n')).cameras["c"].engine_used == engine


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("v4l2://video0", "a camera of this machine is a device, as in 'v4l2:///dev/video0"),
        ("v4l2:///etc/passwd", "a camera of this machine is a device"),
        ("v4l2:///dev/video0?size=big", "'size=big' is none of format, size, fps with a value"),
        ("v4l2:///dev/video0?list_formats=all", "'list_formats=all' is none of format, size, fps"),
    ],
)
def test_a_device_that_is_none_is_refused(write: Any, url: str, expected: str) -> None:
    """Only devices, and only what a camera may be asked for."""
    (found,) = problems(write(CAMERA.replace("rtsp://h/x", url)))
    assert expected in found


@pytest.mark.parametrize(
    "url", ["rtsp://u:hunter2@h/x", "rtsp://u:hunter2/@h/x", "rtsp://hunter2@h", "rtsp://[hunter2"]
)
def test_a_password_in_a_url_is_refused_and_not_repeated(write: Any, url: str) -> None:
    """The sentence says where it belongs, and does not show it."""
    (found,) = problems(write(CAMERA.replace("rtsp://h/x", url)))
    assert "cameras.c.url" in found
    assert "hunter2" not in found


@pytest.mark.parametrize("bind", ["127.0.0.1:1883", "0.0.0.0:1883", "localhost:1883", "[::]:1883"])
def test_two_listeners_cannot_share_an_address(write: Any, bind: str) -> None:
    """The same port on the same address, or on one that covers it, is refused; another address is not."""
    second = (
        f'[mqtt.listeners.b]\nbind = "{bind}"\nroutes = [{{ filter = "#", stream = "t" }}]\nallow_anonymous = true\n'
    )
    (found,) = problems(write(LISTENER + second))
    assert "gateway.toml:6: mqtt.listeners.b.bind: port 1883 is taken by mqtt.listeners.a" in found
    load(write(LISTENER + second.replace(bind, "127.0.0.2:1883")))


def test_two_subscribers_cannot_share_a_client_id(write: Any) -> None:
    """A broker would disconnect one for the other, for ever."""
    second = BROKER.partition("\n")[2].replace("s.b]", "s.c]") + 'client_id = "x"\n'
    (found,) = problems(write(BROKER + 'client_id = "x"\n' + second))
    assert "mqtt.subscribers.c.client_id: mqtt.subscribers.b uses it" in found


@pytest.mark.parametrize(
    "source",
    [
        '[mqtt.listeners.l]\nbind = "127.0.0.1:1883"\nroutes = [{ filter = "#", stream = "__mqtt_sessions" }]',
        '[cameras.c]\nurl = "rtsp://10.0.0.1/a"\nstream = "__mqtt_sessions"',
    ],
)
def test_nothing_is_recorded_in_the_stream_of_sessions(write: Any, source: str) -> None:
    """What listeners remember of their clients must stand alone."""
    (problem,) = problems(write(f'data = "d"\n{source}\n'))
    assert "__mqtt_sessions" in problem
    assert "the gateway's own" in problem


def test_all_mistakes_are_named_at_once_in_the_order_of_the_file(write: Any) -> None:
    """One run of the check shows everything, as one line each."""
    found = problems(write('data = "d"\n[streams.t]\nack = "x"\nlinger = 1\n[cameras.c]\nurl = "x://"\n[sit]\n'))
    assert [problem.split(": ")[0] for problem in found] == [f"gateway.toml:{line}" for line in (3, 4, 6, 7)]


@pytest.mark.parametrize(
    ("text", "line"),
    [('data = "d"\n[site\n', 2), ("a = 1\na = 2\n", 2), ("a = 1\nb =\n", 2), ('x = "', None)],
)
def test_what_is_not_toml_is_named_with_its_line(write: Any, text: str, line: int | None) -> None:
    """A syntax error says which line."""
    (found,) = problems(write(text))
    assert found.startswith(f"gateway.toml:{line}: not valid TOML" if line else "gateway.toml")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """A missing file, a directory and a file that is not text are one sentence each."""
    (tmp_path / "latin1.toml").write_bytes(b'data = "d"\n# \xe4\n')
    for name, expected in (
        ("none.toml", "gateway init"),
        (".", "directory"),
        ("latin1.toml", "latin1.toml:2: is not UTF-8"),
    ):
        with pytest.raises(ConfigError, match=expected):
            load(tmp_path / name)


def test_included_files_are_merged_and_named(write: Any, tmp_path: Path) -> None:
    """Tables of several files come together; relative paths start at the file that names them."""
    write('[cameras.a]\nurl = "rtsp://h/a"\nusername = "u"\npassword_file = "pw"\n', "conf.d/10-a.toml")
    write("secret", "conf.d/pw")
    write('[cameras.b]\nurl = "rtsp://h/b"\n', "conf.d/20-b.toml")
    path = write('include = ["conf.d/*.toml"]\ndata = "d"\n[cameras.z]\nurl = "rtsp://h/z"\n')
    config = load(path)
    assert list(config.cameras) == ["z", "a", "b"]
    assert config.cameras["a"].password_file == tmp_path / "conf.d/pw"
    write('\n[cameras.b]\nurl = "ftp://h/b"\n', "conf.d/20-b.toml")
    (found,) = problems(path)
    assert found.startswith("conf.d/20-b.toml:3: cameras.b.url")


def test_a_key_in_two_files_is_refused_with_both_places(write: Any, tmp_path: Path) -> None:
    """Which of the two would win is not left to the order of the files."""
    write('data = "e"\n', "more.toml")
    (found,) = problems(write('include = ["more.toml"]\ndata = "d"\n'))
    assert found == f"gateway.toml:2: data: is set a second time in {tmp_path}/more.toml:1; keep one of the two"


def test_an_included_file_includes_no_other(write: Any) -> None:
    """One level is enough, and nothing can go round in circles."""
    write('include = ["gateway.toml"]\n', "more.toml")
    (found,) = problems(write('include = ["more.toml"]\ndata = "d"\n'))
    assert "more.toml:1" in found
    assert "cannot include others" in found


def test_the_data_directory_is_found_without_secrets(write: Any, tmp_path: Path) -> None:
    """Programs that read need neither the environment nor the password files of the gateway."""
    assert data_directory(write(FULL)) == tmp_path / "data"
    with pytest.raises(ConfigError, match="data"):
        data_directory(write("[site]\n"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('data = "d"\n', "nothing will be recorded"),
        (LISTENER + "[streams.u]\n", "streams.u: no source records in this stream"),
        (
            LISTENER.replace("127.0.0.1", "0.0.0.0") + "allow_anonymous = true\n",
            "mqtt.listeners.a.allow_anonymous: everybody who reaches this address may publish",
        ),
        (CAMERA + '[cameras.d]\nurl = "rtsp://h/x"\n', "another camera has the same url"),
        (CAMERA + '[cameras."a.b"]\nurl = "rtsp://h/y"\n[cameras.a_b]\nurl = "rtsp://h/z"\n', "only in '.' and '_'"),
    ],
)
def test_what_is_probably_not_meant_is_warned_of(write: Any, text: str, expected: str) -> None:
    """A warning does not keep the gateway from starting."""
    assert any(expected in sentence for sentence in warnings(load(write(text))))


def test_a_password_file_for_everybody_is_warned_of(write: Any, tmp_path: Path) -> None:
    """A secret that every user may read is mentioned, with the remedy."""
    secret = write("x", "secret")
    config_text = CAMERA + 'username = "u"\npassword_file = "secret"\n'
    secret.chmod(0o644)
    assert any("chmod 600" in sentence for sentence in warnings(load(write(config_text))))
    secret.chmod(0o600)
    assert warnings(load(write(config_text))) == []


def test_dictionaries_are_checked_the_same_way() -> None:
    """Code that builds a configuration gets the same sentences, without lines."""
    with pytest.raises(ConfigError, match=r"^configuration: streams\.t\.ack: must be 'disk' or 'memory'"):
        from_dict({"data": "d", "streams": {"t": {"ack": "x"}}})
    config = from_dict({"data": "/d", "mqtt": {"listeners": {"a": {"bind": "127.0.0.1:0", "routes": [
        {"filter": "#", "stream": "t"}]}}}})  # fmt: skip
    assert config.mqtt.listeners["a"].port == 0
    assert isinstance(config, Config)


TEXTS = st.text(alphabet="ab1.-_${}:/@#+ ", max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
SECTIONS = st.sampled_from(["data", "site", "disk", "limits", "streams", "mqtt", "cameras", "kafka", "x"])


@given(st.dictionaries(SECTIONS, VALUES, max_size=4))
def test_no_dictionary_raises_anything_but_a_config_error(document: dict[str, Any]) -> None:
    """Whatever the types and names, the answer is a configuration or a ConfigError with sentences."""
    try:
        from_dict(document)
    except ConfigError as error:
        assert error.problems


def test_a_template_names_no_stream(write: Any) -> None:
    """What is certainly needed for a route with a template is the stream for what overflows."""
    text = LISTENER.replace(
        "[{ filter",
        '[{ filter = "line/+/#", stream = "line-{2}", key = "{3}-{topic}", overload = "drop-newest" }, { filter',
    )
    config = load(write(text))
    route = config.mqtt.listeners["a"].routes[0]
    assert (route.is_template, route.known_stream, route.levels_used) == (True, "overflow", 3)
    assert config.written_streams() == {"overflow", "t", SESSIONS_STREAM}


@pytest.mark.parametrize(("topic_filter", "levels"), [("$share/g/a/+", 2), ("$share/g/#", 9)])
def test_levels_of_a_shared_subscription(write: Any, topic_filter: str, levels: int) -> None:
    """Its name is no part of the topic."""
    fine = BROKER.replace('"#"', f'"{topic_filter}"').replace('"t"', f'"{{{levels}}}"')
    assert load(write(fine)).written_streams() == {"overflow"}
    if levels < 9:
        assert "is never there" in problems(write(fine.replace(f"{{{levels}}}", f"{{{levels + 1}}}")))[0]


# -- the control plane -------------------------------------------------------------------------------------------------

CONTROL = 'data = "data"\n[site]\nname = "plant-7"\n[control]\nurl = "mqtt://broker.local"\n'


def test_control_defaults(write: Any) -> None:
    """Its topic is made from the site's name, and nobody may command unless the file says so."""
    config = load(write(CONTROL))
    assert config.control_topic == "gateway/plant-7"
    assert config.control is not None
    assert (config.control.commands, config.control.statistics_interval_ns) == (False, 10_000_000_000)
    assert load(write(CONTROL + 'topic = "sites/7"\n')).control_topic == "sites/7"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (CONTROL + 'topic = "gateway/#"\n', "control.topic: 'gateway/#' is not a topic"),
        (CONTROL + 'topic = "$SYS/gateway"\n', "control.topic: '$SYS/gateway' is not a topic"),
        (CONTROL + 'topic = "gateway/"\n', "control.topic: levels are added to it with '/'"),
        (CONTROL + f'topic = "{"t" * 1_025}"\n', "has at most 1024 bytes"),
        (CONTROL + 'statistics_interval = "10ms"\n', "control.statistics_interval: must be at least 1.0 s"),
        (CONTROL + 'password = "x"\n', "control: has a password but no 'username'"),
        (CONTROL + 'tls_ca = "ca.pem"\n', "control.tls_ca: has no effect on mqtt://"),
        (CONTROL + 'command = true\n', "did you mean 'commands'?"),
        (CONTROL.replace("broker.local", "a:S3cr3t@broker.local"), "user name and password do not belong into a URL"),
    ],
)  # fmt: skip
def test_control_mistakes(write: Any, text: str, found: str) -> None:
    """The same sentences as for a subscriber, and those about its topic; no secret in any."""
    sentences = problems(write(text))
    assert any(found in sentence for sentence in sentences), sentences
    assert "S3cr3t" not in repr(sentences)


def test_control_shares_a_client_id(write: Any) -> None:
    """With a subscriber at the same broker, which would throw one out for the other."""
    both = BROKER + 'client_id = "x"\n[control]\nurl = "mqtt://broker"\nclient_id = "x"\n'
    url = next(line for line in BROKER.splitlines() if line.startswith("url"))
    (found,) = problems(write(both.replace('url = "mqtt://broker"', url)))
    assert "control.client_id: mqtt.subscribers.b uses it" in found


def test_control_password_file_and_paths(write: Any, tmp_path: Path) -> None:
    """Relative paths start at the file's directory; the file's content is the password."""
    (tmp_path / "secret").write_text("S3cr3t!\n")
    config = load(write(CONTROL + 'username = "gateway"\npassword_file = "secret"\n'))
    assert config.control is not None
    assert config.control.password is not None
    assert config.control.password.get_secret_value() == "S3cr3t!"


@pytest.mark.parametrize(
    ("more", "warned"),
    [
        ("commands = true\n", "control.commands: whoever reaches the broker may pause sources"),
        (
            'commands = true\nusername = "a"\npassword = "b"\n',
            "control.url: commands and the password are not encrypted",
        ),
        ("", ""),
    ],
)
def test_control_warnings(write: Any, more: str, warned: str) -> None:
    """Commands at a broker that anybody may reach, or listen in on."""
    found = [sentence for sentence in warnings(load(write(CONTROL + more))) if sentence.startswith("control")]
    assert (found[0].startswith(warned) and len(found) == 1) if warned else not found
