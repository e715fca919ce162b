import asyncio
from typing import Any

from tune_dlrml.records import Answer
from tune_dlrml.search.tune.mailbox import Mailbox


def report(step: int) -> dict[str, Any]:
    return {"number": 0, "step": step}


def test_a_report_is_acknowledged_once_the_slot_asks_for_more():
    async def story() -> list[Answer]:
        box = Mailbox()
        index = await box.put({})
        answers = [await box.send(index, report(0), rung=False), await box.send(index, report(1), rung=False)]
        await box.collect(index, 1)
        answers.append(await box.send(index, report(2), rung=False))
        await box.collect(index, 1)
        answers.append(await box.send(index, report(3), rung=False))
        return answers

    assert asyncio.run(story()) == [Answer(True, -1), Answer(True, -1), Answer(True, -1), Answer(True, 1)]


def test_a_report_at_a_rung_waits_for_its_verdict():
    async def story() -> tuple[bool, Answer]:
        box = Mailbox()
        index = await box.put({})
        waiting = asyncio.create_task(box.send(index, report(5), rung=True))
        await box.collect(index, 1)
        early = waiting.done()
        await box.release(index)
        return early, await waiting

    assert asyncio.run(story()) == (False, Answer(True, -1))


def test_a_dropped_trial_is_stopped_and_its_reports_are_discarded():
    async def story() -> tuple[Answer, list[Any]]:
        box = Mailbox()
        first = await box.put({})
        waiting = asyncio.create_task(box.send(first, report(5), rung=True))
        await box.collect(first, 1)
        second = await box.put({})
        await box.send(first, report(6), rung=False)
        return await waiting, await box.collect(second, 0.01)

    assert asyncio.run(story()) == (Answer(False, -1), [])


def test_reports_gather_until_the_workers_wait_for_an_answer():
    async def story() -> list[list[int]]:
        box = Mailbox()
        index = await box.put({})
        collected = []
        for last in ("rung", "end"):
            collecting = asyncio.create_task(box.collect(index, 1))
            await box.send(index, report(0), rung=False)
            await asyncio.sleep(0)  # the collector has seen a first report by now
            if last == "rung":
                waiting = asyncio.create_task(box.send(index, report(1), rung=True))
            else:
                await box.finish(index, {"state": "complete"})
            collected.append([item["report"]["step"] if "report" in item else -1 for item in await collecting])
            await box.release(index)
            await waiting
        return collected

    assert asyncio.run(story()) == [[0, 1], [0, -1]]
