"""Refuse every connection except to this machine: Python imports this first when a rehearsal puts it on PYTHONPATH.

Used where there are no namespaces. Child processes inherit it through the environment; programs other than Python are
not stopped, so the report names the method.
"""

import ipaddress
import socket
from typing import Any

_connect, _connect_ex, _resolve = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo


def _check(address: Any) -> None:
    if not isinstance(address, tuple):  # a path: a socket of this machine
        return
    host = str(address[0])
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host in ("", "localhost")
    if not local:
        raise OSError(101, f"the rehearsal has no network: connection to {host} refused")


def connect(self: socket.socket, address: Any) -> None:
    _check(address)
    _connect(self, address)


def connect_ex(self: socket.socket, address: Any) -> int:
    _check(address)
    return _connect_ex(self, address)


def getaddrinfo(host: Any, *rest: Any, **more: Any) -> Any:
    _check((host or "",))
    return _resolve(host, *rest, **more)


socket.socket.connect = connect  # type: ignore[assignment, method-assign]
socket.socket.connect_ex = connect_ex  # type: ignore[assignment, method-assign]
socket.getaddrinfo = getaddrinfo
