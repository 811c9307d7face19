"""An HTTP/2 client that can misbehave: send half a message, never read, vanish."""

import socket
import ssl
import struct

import h2.config
import h2.connection
import h2.events
import h2.settings


def frame(message, said_bytes=None):
    """A gRPC message on the wire; `said_bytes` lies about its length."""
    return struct.pack(">BI", 0, len(message) if said_bytes is None else said_bytes) + message


class RawClient:
    """One connection. With window 0 the server may answer headers and never a byte of data."""

    def __init__(self, address, window_bytes=None, timeout_s=30, receive_buffer_bytes=None, context=None):
        host, port = address.rsplit(":", 1)
        self.authority = address
        self.socket = socket.socket()
        if receive_buffer_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.settimeout(timeout_s)
        self.socket.connect((host, int(port)))
        if context:
            self.socket = context.wrap_socket(self.socket, server_hostname="localhost")
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        if window_bytes is not None:
            self.h2.local_settings = h2.settings.Settings(
                client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window_bytes})
        self.h2.initiate_connection()
        self.headers, self.data, self.ended, self.goodbye = {}, {}, set(), None
        self.flush()

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def call(self, path, *, end=False, **metadata):
        """Begins a call; returns its stream."""
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, [(":method", "POST"), (":scheme", "http"), (":path", path),
                                      (":authority", self.authority), ("content-type", "application/grpc"),
                                      ("te", "trailers"), *metadata.items()], end_stream=end)
        self.flush()
        return stream

    def send(self, stream, data, end=False):
        """All of it, reading what opens the window."""
        while (data or end) and stream not in self.ended:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(data))
            if room == 0 and data:
                if not self.read():
                    return
                continue
            self.h2.send_data(stream, data[:room], end_stream=end and room == len(data))
            end, data = end and room != len(data), data[room:]
            self.flush()

    def allow(self, stream, window_bytes):
        """Opens the window of a call that was begun with window 0."""
        self.h2.increment_flow_control_window(window_bytes)
        self.h2.increment_flow_control_window(window_bytes, stream)
        self.flush()

    def read(self):
        """Waits for something and notes it: .headers[stream], .data[stream], .ended. False: the server wants to hear no
        more."""
        received = self.socket.recv(65536)
        if not received:
            return False
        if self.goodbye is not None:  # after which h2 understands nothing more
            return True
        for event in self.h2.receive_data(received):
            stream = getattr(event, "stream_id", None)
            if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                self.headers.setdefault(stream, {}).update(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                self.data[stream] = self.data.get(stream, b"") + event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
            elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
                self.ended.add(stream)
            elif isinstance(event, h2.events.ConnectionTerminated):
                self.goodbye = event.additional_data or b""
                return False
        self.flush()
        return True

    def finish(self, stream):
        """Reads to the end of the call; returns its headers and trailers."""
        while stream not in self.ended and self.read():
            pass
        return self.headers.get(stream, {})

    def vanish(self):
        """No goodbye: the peer gets a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def trusting(ca):
    """For RawClient(context=...): TLS with the certificate authority of this file."""
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(["h2"])
    return context
