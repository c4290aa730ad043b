"""Lets the tests of this room import what lies beside them, and leaves those of the device to ``test_alone.py``."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

collect_ignore = [] if "PAPERTAPE_SIMULATED" in os.environ else ["test_simulated_device.py"]
