"""An RTSP server for tests: H.264 in RTP, sent to one client inside its TCP connection (RFC 2326, 10.12)."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

_SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
    "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track\r\n"
)


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RtspCamera:
    """Plays RGB pictures round and round at ``rate``; `cut` ends the connection, `start` takes new ones."""

    def __init__(self, pictures: Sequence[NDArray[np.uint8]], rate: float = 25.0) -> None:
        self._pictures, self._rate, self._port = pictures, rate, free_port()
        self.url = f"rtsp://user:secret@127.0.0.1:{self._port}/camera"
        self.served = 0
        self.start()

    def start(self) -> None:
        """Listen."""
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Go away, as a camera does that loses its power."""
        self._over.set()
        self._thread.join(10)

    def _serve(self) -> None:
        with self._listener:
            self._listener.settimeout(0.1)
            while not self._over.is_set():
                try:
                    client = self._listener.accept()[0]
                except TimeoutError:
                    continue
                with client:
                    self.served += 1
                    self._converse(client)

    def _converse(self, client: socket.socket) -> None:
        """Answer requests up to PLAY, then send pictures until one side ends."""
        client.settimeout(5)
        while not self._over.is_set():
            request = b""
            while b"\r\n\r\n" not in request:
                part = client.recv(4096)
                if not part:
                    return
                request += part
            lines = request.decode().split("\r\n")
            sequence = next(line for line in lines if line.lower().startswith("cseq"))
            method = lines[0].split()[0]
            body = _SDP if method == "DESCRIBE" else ""
            head = {
                "OPTIONS": "Public: DESCRIBE, SETUP, PLAY, TEARDOWN\r\n",
                "DESCRIBE": f"Content-Base: {self.url}/\r\nContent-Type: application/sdp\r\n",
                "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n",
            }.get(method, "Session: 1\r\n")
            answer = f"RTSP/1.0 200 OK\r\n{sequence}\r\n{head}Content-Length: {len(body)}\r\n\r\n{body}"
            client.sendall(answer.encode())
            if method == "PLAY":
                self._play(client)
                return

    def _play(self, client: socket.socket) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as rtp:
            rtp.bind(("127.0.0.1", 0))
            options = {"preset": "ultrafast", "tune": "zerolatency", "g": "5", "crf": "16"}
            with av.open(f"rtp://127.0.0.1:{rtp.getsockname()[1]}?pkt_size=1200", "w", format="rtp") as packets:
                stream = packets.add_stream("libx264", rate=25, options=options)
                stream.height, stream.width = self._pictures[0].shape[:2]
                stream.pix_fmt = "yuv420p"
                number, started = 0, time.monotonic()
                while not self._over.is_set():
                    frame = av.VideoFrame.from_ndarray(self._pictures[number % len(self._pictures)], format="rgb24")
                    frame.pts, frame.time_base = number, Fraction(1, 25)
                    packets.mux(stream.encode(frame))
                    while select.select([rtp], [], [], 0.002)[0]:
                        packet = rtp.recv(4096)
                        if packet[1] & 0x7F == 96:
                            try:
                                client.sendall(b"$\x00" + len(packet).to_bytes(2, "big") + packet)
                            except OSError:
                                return
                    number += 1
                    time.sleep(max(0.0, started + number / self._rate - time.monotonic()))
