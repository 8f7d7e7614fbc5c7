from __future__ import annotations

import contextlib
import socket
import threading

from fedpalm.cli.byte_counter import ByteCounter


def test_it_counts_both_directions_and_ends_with_a_connection_still_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                while connection.recv(4096):
                    connection.sendall(b"pong")

        threading.Thread(target=answer, daemon=True).start()
        with ByteCounter(f"127.0.0.1:{server.getsockname()[1]}") as counter:
            host, port = counter.address.split(":")
            dialled = socket.create_connection((host, int(port)))
            dialled.sendall(b"ping!")
            assert dialled.recv(4) == b"pong"
            assert (counter.sent, counter.received) == (5, 4)
        assert dialled.recv(4) == b""
        with contextlib.suppress(ConnectionResetError):
            assert dialled.recv(4) == b""
        dialled.close()
