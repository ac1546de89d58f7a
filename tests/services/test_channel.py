"""The line between a worker and its parent: order, batches, questions, and what ends it."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import uvloop

from gateway.services.channel import HEAD, Channel, ChannelLost

Sent = list[Any]


class Word(msgspec.Struct, frozen=True, array_like=True, tag="w"):
    text: str


class Number(msgspec.Struct, frozen=True, array_like=True, tag="n"):
    value: int


class Double(msgspec.Struct, frozen=True, tag="double"):
    value: int


class End:
    """One end, and what came to it."""

    def __init__(self) -> None:
        self.got: Sent = []
        self.lost = asyncio.Event()
        self.channel = Channel(Word | Number, Double, self.lost.set)
        self.channel.on({Word: self.got.append, Number: self.got.append})

    async def until(self, count: int) -> Sent:
        async with asyncio.timeout(5):
            while len(self.got) < count:
                await asyncio.sleep(0)
        return self.got


@contextlib.asynccontextmanager
async def ends() -> AsyncIterator[tuple[End, End]]:
    here, there = End(), End()
    pair = socket.socketpair()
    await here.channel.connect(pair[0])
    await there.channel.connect(pair[1])
    try:
        yield here, there
    finally:
        here.channel.close()
        there.channel.close()
        await here.lost.wait()
        await there.lost.wait()


def test_messages_keep_their_order_and_a_turn_is_one_frame() -> None:
    async def main() -> None:
        async with ends() as (here, there):
            sent: Sent = []
            for turn in range(50):
                for number in range(turn % 7):
                    sent.append(Number(number) if number % 2 else Word("x" * number))
                    here.channel.send(sent[-1])
                await asyncio.sleep(0)
            assert await there.until(len(sent)) == sent
        one, other = socket.socketpair()
        end = End()
        await end.channel.connect(one)
        for number in range(3):
            end.channel.send(Number(number))
        end.channel.close()
        data = await asyncio.to_thread(other.recv, 65536)
        assert int.from_bytes(data[:HEAD], "little") == len(data) - HEAD
        assert len(msgspec.msgpack.decode(data[HEAD:])) == 3
        other.close()

    uvloop.run(main())


def test_frames_in_any_pieces() -> None:
    """As a stream socket may cut them."""

    async def main() -> None:
        seed = random.randrange(1 << 30)
        rng = random.Random(seed)
        end = End()
        one, other = socket.socketpair()
        await end.channel.connect(one)
        words = [Word("w" * rng.randrange(200)) for _ in range(40)]
        wire = b""
        for first in range(0, 40, 5):
            payload = msgspec.msgpack.encode(words[first : first + 5])
            wire += len(payload).to_bytes(HEAD, "little") + payload
        while wire:
            cut = rng.randrange(1, 30)
            other.sendall(wire[:cut])
            wire = wire[cut:]
            await asyncio.sleep(0)
        assert await end.until(40) == words, f"seed {seed}"
        other.close()
        await end.lost.wait()

    uvloop.run(main())


@pytest.mark.parametrize(
    "wire", [b"\x03\x00\x00\x00abc", b"\xff\xff\xff\xff", b"\x06\x00\x00\x00\x91\x92\xa1?\x01\xc0"]
)
def test_what_cannot_be_read_ends_the_channel(wire: bytes) -> None:
    async def main() -> None:
        end = End()
        one, other = socket.socketpair()
        await end.channel.connect(one)
        other.sendall(wire)
        async with asyncio.timeout(5):
            await end.lost.wait()
        assert end.got == []
        other.close()

    uvloop.run(main())


def test_what_cannot_be_written_ends_the_channel(caplog: pytest.LogCaptureFixture) -> None:
    """What went before it arrives; nobody waits for what was lost with it."""

    async def main() -> None:
        async with ends() as (here, there):
            here.channel.send(Number(1))
            await there.until(1)
            asked = here.channel.ask(Double(1), int, 60.0)
            here.channel.send(Number(2))
            here.channel.send(Number(1 << 64))
            async with asyncio.timeout(5):
                with pytest.raises(ChannelLost):
                    await asked
                await there.lost.wait()
            assert there.got == [Number(1)]
            here.channel.send(Number(3))

    uvloop.run(main())
    assert "a message could not be written" in caplog.text


def test_what_is_sent_before_there_is_a_connection_goes_with_it() -> None:
    """A worker may be told to end while its process is being started."""

    async def main() -> None:
        here, there = End(), End()
        here.channel.send(Number(1))
        for number in (2, 3):
            await asyncio.sleep(0)
            here.channel.send(Number(number))
        pair = socket.socketpair()
        await there.channel.connect(pair[1])
        await here.channel.connect(pair[0])
        here.channel.send(Number(4))
        assert await there.until(4) == [Number(n) for n in (1, 2, 3, 4)]
        here.channel.close()
        async with asyncio.timeout(5):
            await there.lost.wait()
        End().channel.close()

    uvloop.run(main())


def test_questions_find_their_answers() -> None:
    async def main() -> None:
        async with ends() as (here, there):
            gate = asyncio.Event()

            async def double(question: Double) -> int:
                if question.value == 7:
                    raise ValueError("not seven")
                if question.value == 8:
                    return 1 << 64
                if question.value % 2:
                    await gate.wait()
                return 2 * question.value

            there.channel.answers({Double: double})
            asked = [here.channel.ask(Double(value), int, 5.0) for value in range(6)]
            assert await asked[4] == 8
            assert not asked[3].done()
            gate.set()
            assert [await one for one in asked] == [0, 2, 4, 6, 8, 10]
            with pytest.raises(ChannelLost, match="not seven"):
                await here.channel.ask(Double(7), int, 5.0)
            with pytest.raises(ChannelLost, match="OverflowError"):
                await here.channel.ask(Double(8), int, 5.0)

    uvloop.run(main())


def test_a_question_without_an_answer_fails() -> None:
    """In time, and when the channel ends."""

    async def main() -> None:
        async with ends() as (here, there):

            async def never(question: Double) -> None:
                await asyncio.Event().wait()

            there.channel.answers({Double: never})
            with pytest.raises(ChannelLost, match="within"):
                await here.channel.ask(Double(1), int, 0.02)
            asked = here.channel.ask(Double(1), int, 60.0)
            there.channel.close()
            with pytest.raises(ChannelLost):
                await asked
            with pytest.raises(ChannelLost):
                await here.channel.ask(Double(1), int, 60.0)

    uvloop.run(main())


def test_a_question_whose_answer_cannot_be_read_fails() -> None:
    """The channel ends with it, and whoever asked is told."""

    async def main() -> None:
        async with ends() as (here, there):

            async def word(question: Double) -> str:
                return "two"

            there.channel.answers({Double: word})
            with pytest.raises(ChannelLost, match="closed"):
                async with asyncio.timeout(5):
                    await here.channel.ask(Double(1), int, 60.0)

    uvloop.run(main())


def test_a_question_that_nobody_waits_for_is_forgotten() -> None:
    """Though it is never answered."""

    async def main() -> None:
        async with ends() as (here, there):

            async def never(question: Double) -> None:
                await asyncio.Event().wait()

            there.channel.answers({Double: never})
            here.channel.ask(Double(1), int, 60.0).cancel()
            await asyncio.sleep(0)
            assert "asked=0" in repr(here.channel)

    uvloop.run(main())


def test_an_end_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded memory: what piles up for it ends the channel."""
    monkeypatch.setattr("gateway.services.channel.MOST_UNSENT", 1 << 20)

    async def main() -> None:
        end = End()
        one, other = socket.socketpair()
        await end.channel.connect(one)
        async with asyncio.timeout(10):
            while not end.channel.closed:
                end.channel.send(Word("x" * 100_000))
                await asyncio.sleep(0)
        other.close()

    uvloop.run(main())
