"""Is the network blocked? python probe.py namespace|guard. Exit code 0 only where that is proven. Standard library.

A failed connection alone proves nothing: a machine may be offline. In a namespace there must be no interface but
loopback and no route; under the guard, the refusal must be the guard's.
"""

import errno
import socket
import sys

UNUSED_ADDRESS = ("192.0.2.1", 443)  # RFC 5737: reserved for documentation, so nobody is contacted


def main(method: str) -> int:
    interfaces = {name for _, name in socket.if_nameindex()}
    try:
        socket.create_connection(UNUSED_ADDRESS, timeout=5).close()
        number, outcome = 0, "connected"
    except OSError as error:
        number, outcome = error.errno or 0, str(error)
    print(f"interfaces {', '.join(sorted(interfaces))}; a connection to {UNUSED_ADDRESS[0]}: {outcome}")
    if method == "namespace":
        return 0 if interfaces == {"lo"} and number == errno.ENETUNREACH else 1
    return 0 if "the rehearsal has no network" in outcome else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
