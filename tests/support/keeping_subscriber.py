"""A client of a broker that keeps every message it gets."""

from __future__ import annotations

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from tests.support.native import wait_until


class KeepingSubscriber:
    """Subscribed to everything with QoS 2, MQTT 5, in a session that outlives its connection."""

    def __init__(self, port: int) -> None:
        self.got: list[paho.MQTTMessage] = []
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="kept", protocol=paho.MQTTv5)
        self._client.on_message = lambda client, userdata, message: self.got.append(message)
        subscribed: list[bool] = []
        self._client.on_connect = lambda client, *rest: client.subscribe("#", 2)
        self._client.on_subscribe = lambda *rest: subscribed.append(True)
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        wait_until(lambda: bool(subscribed), "the subscription")

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
