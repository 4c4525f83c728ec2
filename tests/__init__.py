"""A package, so that `tests` means this directory whatever other distributions install under that name (gmqtt does)."""
