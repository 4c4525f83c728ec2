"""The commands of ``gateway``, one a module; each has an attribute ``command``."""
