"""Ours before anybody else's: some distributions (gmqtt 0.8) install a package of this name."""
