"""Shows the unit tests of the alert rules what they must find: for each alert, a rule that never fires, one that fires too
early, and one that fires for too little. A wrong rule that no test notices is a failure.

    rig.py PROMTOOL
"""

import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent.parent.parent / "deploy/monitoring"
RULE = re.compile(r"^  - alert: (\w+)$(.*?)(?=^  - alert: |^- name: |\Z)", re.MULTILINE | re.DOTALL)


def never(rule):
    return re.sub(r"(?m)^    expr: (>-\n +)?", lambda found: found[0] + "vector(0) > 1 and on () ", rule, count=1)


def too_early(rule):
    return re.sub(r"(?m)^    for: (\d+)m$", lambda found: f"    for: {int(found[1]) - 1}m", rule)


def for_too_little(rule):
    """`> N` becomes three fifths of it, and a little less than that; `== 0` becomes `>= 0`."""
    head, annotations = rule.split("    labels:", 1)
    head = re.sub(r"> ([0-9.]+)(?= |\)|$)", lambda found: f"> {float(found[1]) * 0.6 - 0.001}", head, flags=re.MULTILINE)
    return head.replace("== 0", ">= 0") + "    labels:" + annotations


def main():
    promtool, text = sys.argv[1], (HERE / "alerts.yaml").read_text("utf-8")
    alerts = [found[1] for found in RULE.finditer(text)]
    unnoticed = []
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        (place / "test.yaml").write_text((HERE / "alerts_test.yaml").read_text("utf-8"), "utf-8")
        for mutate in [never, too_early, for_too_little]:
            changed = {found[1] for found in RULE.finditer(text) if mutate(found[0]) != found[0]}
            (place / "alerts.yaml").write_text(RULE.sub(lambda found: mutate(found[0]), text), "utf-8")
            command = [promtool, "test", "rules", str(place / "test.yaml")]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            noticed = set(re.findall(r"\bSecretfs\w+", done.stdout)) if done.returncode else set()
            print(f"{mutate.__name__}: {len(changed & noticed)} of {len(changed)} noticed, {len(alerts)} alerts")
            unnoticed += [f"{mutate.__name__}: {name}" for name in sorted(changed - noticed)]
            if not changed:
                unnoticed.append(f"{mutate.__name__} changed nothing")
    print("\n".join(unnoticed))
    sys.exit(1 if unnoticed or not alerts else 0)


main()
