"""The control plane: what the gateway tells a broker about itself, and the commands it takes there.

    plane      the connection (aiomqtt), its life, and the loops that use it
    outbox     what waits to be published, bounded
    commands   what may be asked for, and the answers; no I/O of its own
    reports    statistics as JSON of bounded size
    pictures   the last key frame of a camera as a small JPEG

All of it runs on the event loop beside sessions and policy, a picture in a thread of its own. It waits for the broker,
never anybody for it: what cannot leave is dropped, oldest statistics first, and counted.
"""
