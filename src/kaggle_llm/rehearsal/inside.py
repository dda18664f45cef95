"""First process in new namespaces: loopback up, stand-in mounted, repository covered; then runs the command.

Standard library only, started by path. argv[1]: JSON with kaggle, mount, covered, full, command.
"""

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1


def bring_up_loopback() -> None:
    """Notebook kernels use it to talk to their client."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14s", b"lo", 0, b"")
        name, flags, rest = struct.unpack("16sH14s", fcntl.ioctl(control, SIOCGIFFLAGS, request))
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14s", name, flags | IFF_UP, rest))


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def locked_flags(path: str) -> list[str]:
    """Mount flags of a path that a user namespace must keep when it remounts."""
    flags = os.statvfs(path).f_flag
    named = {"nosuid": os.ST_NOSUID, "nodev": os.ST_NODEV, "noexec": os.ST_NOEXEC, "noatime": os.ST_NOATIME}
    return [name for name, flag in named.items() if flags & flag]


def mount_stand_in(kaggle: str, target: str) -> None:
    """Mount `kaggle` at `target`, its input/ read-only, its working/ writable."""
    if kaggle != target:
        mount("--bind", kaggle, target)
    source = os.path.join(target, "input")
    if os.path.isdir(source):
        mount("--bind", source, source)
        mount("-o", ",".join(["remount", "bind", "ro", *locked_flags(source)]), source)


def mount_full_disk(folder: str) -> None:
    """A disk of one page, and a file that fills it."""
    mount("-t", "tmpfs", "-o", "size=4k", "full", folder)
    with open(os.path.join(folder, "full"), "wb") as file:
        file.write(bytes(4096))


def main() -> None:
    plan = json.loads(sys.argv[1])
    bring_up_loopback()
    # So /proc shows this sandbox's processes only; some containers forbid it, and nothing needs it.
    subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=False, capture_output=True)
    mount_stand_in(plan["kaggle"], plan["mount"])
    for folder in plan["covered"]:
        mount("-t", "tmpfs", "-o", "size=4k,mode=555", "covered", folder)
    if plan["full"]:
        mount_full_disk(os.path.join(plan["mount"], "working"))
    if os.path.isdir(os.path.join(plan["mount"], "working")):
        os.chdir(os.path.join(plan["mount"], "working"))
    os.execvp(plan["command"][0], plan["command"])


if __name__ == "__main__":
    main()
