"""From pyproject.toml on standard input to requirements on standard output: what builds and runs the programs.

The arguments are names of dependencies to leave out.
"""

import re
import sys
import tomllib

project = tomllib.load(sys.stdin.buffer)
for wanted in project["build-system"]["requires"] + project["project"]["dependencies"]:
    if re.split(r"[^\w.-]", wanted, maxsplit=1)[0] not in sys.argv[1:]:
        print(wanted)
