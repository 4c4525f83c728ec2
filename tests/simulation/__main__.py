"""``python -m tests.simulation --seed 7`` or ``--seeds 0:20000 --jobs 2``."""

from __future__ import annotations

import sys

from tests.simulation.command import main

sys.exit(main())
