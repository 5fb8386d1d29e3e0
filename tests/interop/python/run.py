"""python run.py websockets | aiohttp: the steps of ../README.md."""

import asyncio
import json
import os
import sys

URL = os.environ["INTEROP_URL"]
TIMEOUT = 20


class OverWebsockets:
    """https://websockets.readthedocs.io"""

    async def connect(self):
        import websockets

        self.socket = await websockets.connect(URL, subprotocols=["livechat.v1"], ping_interval=None)
        return self.socket.subprotocol

    async def send(self, text):
        await self.socket.send(text)

    async def receive(self):
        return await self.socket.recv()

    async def ping(self):
        # Its future ends with the pong of the same payload.
        pong = await self.socket.ping(b"are you there")
        await asyncio.wait_for(pong, TIMEOUT)

    async def close(self):
        await self.socket.close(1000, "done")
        return self.socket.close_code


class OverAiohttp:
    """https://docs.aiohttp.org"""

    async def connect(self):
        import aiohttp

        self.pong = asyncio.Event()
        self.session = aiohttp.ClientSession()
        # Without autoping pongs are seen here; pings are answered below.
        self.socket = await self.session.ws_connect(URL, protocols=["livechat.v1"], autoping=False)
        return self.socket.protocol

    async def send(self, text):
        await self.socket.send_str(text)

    async def receive(self):
        import aiohttp

        while True:
            message = await self.socket.receive()
            if message.type == aiohttp.WSMsgType.TEXT:
                return message.data
            if message.type == aiohttp.WSMsgType.PING:
                await self.socket.pong(message.data)
            elif message.type == aiohttp.WSMsgType.PONG:
                if bytes(message.data) == b"are you there":
                    self.pong.set()
            else:
                raise RuntimeError(f"closed: {message}")

    async def ping(self):
        await self.socket.ping(b"are you there")
        await asyncio.wait_for(self.pong.wait(), TIMEOUT)

    async def close(self):
        await self.socket.close(code=1000, message=b"done")
        await self.session.close()
        return self.socket.close_code


async def main():
    client = {"websockets": OverWebsockets, "aiohttp": OverAiohttp}[sys.argv[1]]()
    frames = asyncio.Queue()
    protocol = await client.connect()
    assert protocol == "livechat.v1", f"the subprotocol is {protocol!r}"

    async def read():
        while True:
            await frames.put(json.loads(await client.receive()))

    reader = asyncio.create_task(read())

    async def until(what, wanted):
        async with asyncio.timeout(TIMEOUT):
            while True:
                frame = asyncio.create_task(frames.get())
                await asyncio.wait([frame, reader], return_when=asyncio.FIRST_COMPLETED)
                if not frame.done():
                    reader.result()
                    raise RuntimeError(f"closed while waiting for {what}")
                if wanted(frame.result()):
                    return

    first = await asyncio.wait_for(frames.get(), TIMEOUT)
    assert first["type"] == "connection_established", f"the first frame is {first['type']}"
    print("connect")

    async def say(identifier, message, sent, received):
        missing = {"message_sent", "new_message"}

        def note(frame):
            data = frame.get("data") or {}
            if data.get("client_message_id") == identifier and frame["type"] in missing:
                missing.discard(frame["type"])
                if frame["type"] == "new_message":
                    assert data["message"] == message, "the text came back changed"
            return not missing

        data = {"message": message, "client_message_id": identifier}
        await client.send(json.dumps({"type": "send_message", "data": data}))
        await until(f"message_sent and new_message of {identifier}", note)
        for step in (sent, received):
            if step:
                print(step)

    await say("small", "Grüße, José 😀", "send", "receive")
    await say("large", "x" * 60_000, "large", None)
    await client.ping()
    print("ping")

    await asyncio.sleep(6.5)
    await client.send(json.dumps({"type": "ping", "request_id": "after"}))
    await until("pong", lambda frame: frame["type"] == "pong" and frame.get("request_id") == "after")
    print("alive")

    # The reader still reads: it ends with the connection.
    code = await asyncio.wait_for(client.close(), TIMEOUT)
    await asyncio.wait([reader], timeout=TIMEOUT)
    assert code == 1000, f"closed with {code}"
    print("close")


asyncio.run(main())
