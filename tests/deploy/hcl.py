"""A folder of Terraform files, parsed: `python hcl.py FOLDER` prints the blocks of all files together, as JSON.

Run with the interpreter of .cache/kubernetes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import hcl2


def plain(value: Any) -> Any:
    """Without what the parser adds, and without the quotes that it leaves around names and texts."""
    match value:
        case dict():
            return {plain(key): plain(inner) for key, inner in value.items() if not key.startswith("__")}
        case list():
            return [plain(inner) for inner in value]
        case str() if len(value) > 1 and value[0] == value[-1] == '"':
            return value[1:-1]
    return value


if __name__ == "__main__":
    blocks: dict[str, list[Any]] = {}
    for file in sorted(Path(sys.argv[1]).glob("*.tf")):
        with file.open() as text:
            for kind, found in plain(hcl2.load(text)).items():
                blocks.setdefault(kind, []).extend(found)
    json.dump(blocks, sys.stdout)
