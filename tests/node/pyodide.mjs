// Runs a Python program under Pyodide, as `python PROGRAM ARGS...` would run it: the same files at the same paths,
// and its exit code is Node's.
//
//   node pyodide.mjs MOUNTS PATH PROGRAM [ARGS...]
//
// MOUNTS are the folders it sees and PATH is put before its sys.path: absolute paths, joined by ":".

import process from "node:process";
import { loadPyodide } from "pyodide";

const RUN = `
def run(path, argv):
    import runpy
    import sys
    import traceback

    sys.path[:0] = path.split(":")
    sys.argv[:] = argv
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

run
`;

const [mounts, path, ...argv] = process.argv.slice(2);
const pyodide = await loadPyodide();
for (const folder of mounts.split(":")) {
  pyodide.mountNodeFS(folder, folder);
}
process.exitCode = pyodide.runPython(RUN)(path, argv);
