import os
import sys
from pathlib import Path

# As after `source .venv/bin/activate`: the commands that a run prints then begin with `ray-rl`.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
