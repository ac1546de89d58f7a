"""What the helpers of the tests promise about ports."""

import socket

import pytest

from tests.servers import free_port


def test_a_free_port_is_kept_for_the_server_it_is_meant_for() -> None:
    port = free_port()
    with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
        stranger.bind(("127.0.0.1", port))
    with socket.create_server(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)):
        pass
