"""A fault at a counted moment: the n-th time that Python writes below a folder, that is opens a file for writing, renames,
removes, or makes a folder. Counted over all processes of a command; what the environment says, `arm` does.

    FAULT=kill@7 FAULT_ROOT=run FAULT_LOG=events.txt

The hook runs before what is counted, so that ``kill`` at a rename leaves the temporary file and no artefact. Kinds:
``kill`` (SIGKILL of the process group), ``int`` and ``term`` (the signals), ``full`` (from then on no file can be written),
``readonly`` (nothing can be changed any more), ``none`` (count only).
"""

import errno
import os
import signal
import sys

COUNTED = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def arm(kind, number, root, log):
    root = os.path.realpath(root) + os.sep
    events = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    full = {"full": errno.ENOSPC, "readonly": errno.EROFS}

    def hook(event, arguments):
        if event == "open":
            path, flags = arguments[0], arguments[2]
            if isinstance(path, int) or not (flags or 0) & _WRITING:
                return
        elif event in COUNTED:
            path = arguments[1] if event == "os.rename" else arguments[0]
        else:
            return
        try:
            path = os.path.abspath(os.fsdecode(path))
        except TypeError:
            return
        if not path.startswith(root):
            return
        os.write(events, f"{event} {path[len(root) :]}\n".encode())
        count = os.pread(events, 1 << 24, 0).count(b"\n")
        if kind == "kill" and count == number:
            os.killpg(0, signal.SIGKILL)
        elif kind in ("int", "term") and count == number:
            os.kill(os.getpid(), signal.SIGINT if kind == "int" else signal.SIGTERM)
        elif kind in full and count >= number and (kind == "readonly" or event in ("open", "os.mkdir")):
            raise OSError(full[kind], os.strerror(full[kind]), path)

    sys.addaudithook(hook)


if "FAULT" in os.environ:
    _kind, _, _number = os.environ["FAULT"].partition("@")
    arm(_kind, int(_number or 0), os.environ["FAULT_ROOT"], os.environ["FAULT_LOG"])
