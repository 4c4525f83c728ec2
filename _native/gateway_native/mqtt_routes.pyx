"""Routes as Python holds them. See mqtt_routes.pxd for the contract."""

import re

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

# What a template is made of: literals and placeholders in turn.
PLACEHOLDER = re.compile(rb"\{([1-9]|topic)\}")
# Up to so many routes without templates a topic is found sooner than it is looked up.
ROUTES_CHEAP_MAX = 4


def filter_match(bytes filter not None, bytes topic not None) -> bool:
    """Does a topic name match a topic filter (MQTT 5 section 4.7)? Both must be valid."""
    return filter_matches(<const uint8_t*><const char*>filter, len(filter), <const uint8_t*><const char*>topic,
                          len(topic))


cdef class Routes:
    """Topic filters and where they lead to; the first filter that matches a topic decides.

    routes: (filter, stream), (filter, stream, key) or (filter, stream, key, drop) in their order. filter: UTF-8. stream: a
    partition, or a template like b"line-{2}". key: a template like b"{3}", or None for the topic. drop: when the ring is
    full, drop the newest record instead of waiting. overflow: partition of the stream for names that are too long or too
    many; needed when a stream is a template. Filters and templates must be valid; `gateway_adapters.mqtt.routes` sees to
    that.
    """

    def __cinit__(self, routes, *, overflow=None):
        cdef size_t text_at = 0
        cdef size_t parts_at = 0
        specs = [tuple(spec) for spec in routes]
        texts = [[part for part in spec if isinstance(part, bytes)] for spec in specs]
        # A template has at most one part more than it has bytes.
        text_bytes = sum([len(text) for found in texts for text in found])
        self.filters = tuple([spec[0] for spec in specs])
        self.streams = tuple([spec[1] for spec in specs])
        self.table.routes = <MqttRoute*>calloc(len(specs) + 1, sizeof(MqttRoute))
        self.table.text = <uint8_t*>malloc(text_bytes + 1)
        self.table.parts = <MqttPart*>calloc(text_bytes + 2 * len(specs) + 1, sizeof(MqttPart))
        if self.table.routes == NULL or self.table.text == NULL or self.table.parts == NULL:
            raise MemoryError(f"no memory for {len(specs)} routes")
        for spec in specs:
            self.add(spec, &text_at, &parts_at)
        if self.table.templates and overflow is None:
            raise ValueError("routes with a template for the stream need a partition for what overflows")
        self.table.overflow = 0 if overflow is None else overflow
        self.table.costly = self.table.templates or self.table.count > ROUTES_CHEAP_MAX

    def __dealloc__(self):
        free(self.table.routes)
        free(self.table.text)
        free(self.table.parts)

    cdef int add(self, object spec, size_t* text_at, size_t* parts_at) except -1:
        cdef bytes filter = spec[0]
        cdef MqttRoute* route = &self.table.routes[self.table.count]
        if not filter:
            raise ValueError("a route's topic filter is empty")
        wildcards = [index for index in (filter.find(b"+"), filter.find(b"#")) if index >= 0]
        route.filter = self.put_text(filter, text_at)
        route.filter_bytes = <uint32_t>len(filter)
        route.literal_bytes = min(wildcards, default=len(filter))
        route.wild = 1 if wildcards else 0
        if isinstance(spec[1], bytes):
            self.compile(spec[1], &route.stream, text_at, parts_at)
            self.table.templates = True
        else:
            route.partition = spec[1]
        if len(spec) > 2 and spec[2] is not None:
            self.compile(spec[2], &route.key, text_at, parts_at)
        route.drop = 1 if len(spec) > 3 and spec[3] else 0
        self.table.count += 1
        return 0

    cdef const uint8_t* put_text(self, bytes text, size_t* text_at) except NULL:
        cdef uint8_t* to = self.table.text + text_at[0]
        memcpy(to, <const char*>text, len(text))
        text_at[0] += len(text)
        return to

    cdef int compile(self, bytes template, MqttTemplate* to, size_t* text_at, size_t* parts_at) except -1:
        """`PLACEHOLDER.split` gives literal, placeholder, literal, … of which literals may be empty."""
        cdef MqttPart* part
        if not template:
            raise ValueError("a template is empty")
        to.parts = self.table.parts + parts_at[0]
        for index, piece in enumerate(PLACEHOLDER.split(template)):
            if not piece:
                continue
            part = &to.parts[to.count]
            if index % 2:
                part.kind = PART_TOPIC if piece == b"topic" else int(piece)
            else:
                part.text = self.put_text(piece, text_at)
                part.text_bytes = <uint32_t>len(piece)
            to.count += 1
        parts_at[0] += to.count
        return 0

    def __len__(self) -> int:
        return self.table.count

    @property
    def partitions(self) -> tuple:
        """Every partition that is known before the first message, that of overflow included."""
        known = [stream for stream in self.streams if isinstance(stream, int)]
        return tuple(known + [self.table.overflow] if self.table.templates else known)

    def find(self, bytes topic not None):
        """Index of the route that a topic takes, or None."""
        cdef const MqttRoute* route = route_find(&self.table, <const uint8_t*><const char*>topic, len(topic))
        return None if route == NULL else <size_t>(route - self.table.routes)

    def target(self, bytes topic not None):
        """(stream, key) for a topic, or None when no route takes it.

        stream: a partition, the name that a template gives (bytes), or None when that name is too long.
        """
        cdef const MqttRoute* route = route_find(&self.table, <const uint8_t*><const char*>topic, len(topic))
        cdef const uint8_t* text = <const uint8_t*><const char*>topic
        cdef uint8_t[STREAM_NAME_BYTES_MAX] name
        cdef uint32_t size
        if route == NULL:
            return None
        key = topic
        if route.key.count:
            key = PyBytes_FromStringAndSize(NULL, key_bytes(&route.key, text, len(topic)))
            key_put(&route.key, text, len(topic), <uint8_t*><char*>key)
        if route.stream.count == 0:
            return route.partition, key
        size = stream_name(&route.stream, text, len(topic), name)
        return (<const char*>name)[:size] if size else None, key
