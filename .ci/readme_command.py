"""Prints the N-th command of the README, so that CI runs what a reader would run."""

import re
import sys
from pathlib import Path

BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE)

if __name__ == "__main__":
    readme = Path(__file__).parent.parent / "README.md"
    print(BLOCK.findall(readme.read_text())[int(sys.argv[1]) - 1].strip())
