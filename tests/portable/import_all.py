"""Runs under Pyodide: import each module named on the command line and print what went wrong, as JSON by module."""

import importlib
import json
import sys
import traceback

failures = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception:  # noqa: BLE001  (whatever it is, it is the finding)
        failures[name] = traceback.format_exc()
print(json.dumps(failures))  # noqa: T201  (the answer)
