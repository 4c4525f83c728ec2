"""The log on disk: layout, segments, indexes, reading, recovery, verification. FORMAT.md beside this file specifies it.

Nothing here maps a file: a bad sector must be an error, never a SIGBUS. Readers need read permission only and create
nothing; only `prepare`, `DataLock` and `recover` write.
"""
