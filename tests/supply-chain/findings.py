"""The errors in cargo-deny's JSON (stdin), one a line: CODE CRATE: MESSAGE. A crate is the one that the error is about."""

import json
import sys

for line in sys.stdin:
    if line.startswith("{"):
        fields = json.loads(line).get("fields", {})
        if fields.get("severity") == "error":
            crates = {graph["Krate"]["name"] for graph in fields.get("graphs", [])}
            print(f"{fields['code']} {' '.join(sorted(crates))}: {fields['message']}")
