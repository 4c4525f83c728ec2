"""The Kafka endpoint: every stream as a topic of one partition, for any Kafka client (`[kafka]`, extra `[kafka]`).

    server       the thread, its event loop and its sockets; what the app starts and stops
    entrance     accepting, TLS handshakes
    connection   one client: frames in, responses out, limits
    requests     which request is answered by what; every API and version that is advertised
    catalog      streams as topics; how far each is durable
    slices       where in the segments the records of a fetch lie
    ahead        what a consumer that reads on will ask for next, looked up beforehand
    fetch        Fetch: the response, sent from the files themselves
    groups       consumer groups: members, generations, rebalances; no I/O
    commits      committed offsets, on disk
    coordinator  the requests of groups
    users, sasl  who may connect
    produce      Produce and InitProducerId, where the configuration allows them
    producers    which sequence number each idempotent producer has reached

Requests and responses are written and read by `gateway.kafka.wire`.

Everything runs on one thread with an event loop of its own, beside a few threads that read the disk: a consumer that
reads old data from a slow disk must not hold up the devices on the gateway's event loop.
Source of the protocol: Apache Kafka, clients/src/main/resources/common/message/*.json.
"""
