"""The MQTT subscriber: which engine carries it. The source's promises are the same for both.

"native" (the default): our own client on the native parser. "aiomqtt": aiomqtt and paho, for odd brokers.
"""

from __future__ import annotations

from gateway.config import SubscriberConfig
from gateway.ingest.source import Source, SourceContext


def create(name: str, config: SubscriberConfig, context: SourceContext) -> Source:
    """Entry point of kind "mqtt.subscriber"."""
    if config.engine == "aiomqtt":
        # Not before it is asked for: paho is slow to import.
        from gateway_adapters.mqtt.aiomqtt_subscriber import AiomqttSubscriber

        return AiomqttSubscriber(name, config, context)
    from gateway_adapters.mqtt.native_subscriber import NativeSubscriber

    return NativeSubscriber(name, config, context)
