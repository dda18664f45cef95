"""Try to reach the outside: python probe.py. Exit code 0 where it is reached, 3 where it is not. Standard library."""

import socket
import sys

OUTSIDE = ("www.kaggle.com", 443)


def main() -> int:
    interfaces = ", ".join(name for _, name in socket.if_nameindex())
    try:
        socket.create_connection(OUTSIDE, timeout=5).close()
    except OSError as error:
        print(f"interfaces: {interfaces}; {OUTSIDE[0]}: {error}")
        return 3
    print(f"interfaces: {interfaces}; {OUTSIDE[0]} was reached")
    return 0


if __name__ == "__main__":
    sys.exit(main())
