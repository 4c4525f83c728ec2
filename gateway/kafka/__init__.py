"""What both sides of Kafka's protocol need, the endpoint in `gateway.serve` and readers in `gateway.replay`.

    wire         request headers and schemas; uses kio (extra `[kafka]`)
    lengths      whether the lengths in a message are possible, before kio believes them
    client       a Kafka client that reads: a gateway's endpoint, or any broker

Imports nothing of ours but `gateway.errors`.
"""
