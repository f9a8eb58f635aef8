from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from guardrail_vl.engines import _batching
from guardrail_vl.engines._batching import Job, MicroBatcher, agather, gather
from guardrail_vl.engines.base import Deadline, Outcome
from guardrail_vl.errors import EngineError, EngineUnavailableError
from guardrail_vl.prompt_format.base import Completion, Prompt, PromptMessage, PromptText

Run = Callable[[Sequence[Job], threading.Event], None]


def prompt(text: str, *, max_tokens: int = 1) -> Prompt:
    return Prompt((PromptMessage("user", (PromptText(text),)),), max_tokens=max_tokens)


def echo(job: Job) -> Completion:
    return Completion(job.prompt.messages[0].text)


def texts(outcomes: Sequence[Outcome]) -> list[str]:
    return [o.text if isinstance(o, Completion) else type(o).__name__ for o in outcomes]


class Recorder:
    """Echoes, and remembers the batches it was given."""

    def __init__(self, *, hold: threading.Event | None = None) -> None:
        self.batches: list[list[str]] = []
        self.hold = hold

    def __call__(self, jobs: Sequence[Job], stopping: threading.Event) -> None:
        self.batches.append([job.prompt.messages[0].text for job in jobs])
        while self.hold is not None and not self.hold.wait(0.005):
            if stopping.is_set():
                return
        for job in jobs:
            job.settle(echo(job))


@pytest.fixture
def make() -> Iterator[Callable[..., MicroBatcher]]:
    made: list[MicroBatcher] = []

    def build(run: Run, *, max_batch: int = 4, max_wait: float = 0.05) -> MicroBatcher:
        made.append(
            MicroBatcher(run, group=lambda p: p.max_tokens, max_batch=max_batch, max_wait=max_wait, name="under-test")
        )
        return made[-1]

    yield build
    for batcher in made:
        batcher.close()
    assert not [t for t in threading.enumerate() if t.name == "under-test"]


def test_jobs_of_one_time_share_batches_and_keep_their_order(make: Callable[..., MicroBatcher]) -> None:
    run = Recorder()
    deadline = Deadline.after(5)
    jobs = make(run).submit([prompt(str(i)) for i in range(6)], deadline)
    assert texts(gather(jobs, deadline)) == list("012345")
    assert run.batches == [["0", "1", "2", "3"], ["4", "5"]]


def test_a_full_batch_does_not_wait(make: Callable[..., MicroBatcher]) -> None:
    deadline = Deadline.after(5)
    started = time.monotonic()
    gather(make(Recorder(), max_batch=2, max_wait=3).submit([prompt("a"), prompt("b")], deadline), deadline)
    assert time.monotonic() - started < 1


def test_groups_are_not_mixed(make: Callable[..., MicroBatcher]) -> None:
    run = Recorder()
    deadline = Deadline.after(5)
    prompts = [prompt("a"), prompt("b", max_tokens=9), prompt("c"), prompt("d", max_tokens=9)]
    assert texts(gather(make(run).submit(prompts, deadline), deadline)) == ["a", "b", "c", "d"]
    assert run.batches == [["a", "c"], ["b", "d"]]


def test_late_and_cancelled_jobs_are_never_run(make: Callable[..., MicroBatcher]) -> None:
    run = Recorder()
    batcher = make(run)
    past = batcher.submit([prompt("late")], Deadline.after(-1))
    (cancelled,) = batcher.submit([prompt("cancelled")], Deadline.after(5))
    cancelled.future.cancel()
    good = batcher.submit([prompt("good")], Deadline.after(5))
    assert texts(gather(good, Deadline.after(5))) == ["good"]
    assert texts(gather(past, Deadline.after(-1))) == ["EngineUnavailableError"]
    assert run.batches == [["good"]]


def test_callers_leave_by_their_deadline_whatever_the_thread_does(make: Callable[..., MicroBatcher]) -> None:
    hold = threading.Event()
    run = Recorder(hold=hold)
    batcher = make(run)
    deadline = Deadline.after(0.1)
    started = time.monotonic()
    assert texts(gather(batcher.submit([prompt("stuck")], deadline), deadline)) == ["EngineUnavailableError"]
    assert time.monotonic() - started < 2  # the thread is held for ever
    assert run.batches == [["stuck"]]
    hold.set()
    assert texts(gather(batcher.submit([prompt("next")], Deadline.after(5)), Deadline.after(5))) == ["next"]


def test_a_failing_batch_is_an_error_for_its_jobs_only(make: Callable[..., MicroBatcher]) -> None:
    def run(jobs: Sequence[Job], stopping: threading.Event) -> None:
        jobs[0].settle(echo(jobs[0]))
        if len(jobs) > 1:
            raise ValueError("user text that must not be shown")

    batcher = make(run)
    deadline = Deadline.after(5)
    first, second = gather(batcher.submit([prompt("a"), prompt("b")], deadline), deadline)
    assert texts([first]) == ["a"]
    assert type(second) is EngineError
    assert "user text" not in str(second)
    assert texts(gather(batcher.submit([prompt("c")], deadline), deadline)) == ["c"]


def test_close_settles_what_is_under_way_and_the_next_job_starts_again(make: Callable[..., MicroBatcher]) -> None:
    hold = threading.Event()
    run = Recorder(hold=hold)
    batcher = make(run, max_batch=1, max_wait=0)
    jobs = batcher.submit([prompt("running"), prompt("queued")], Deadline.after(30))
    while not run.batches:
        time.sleep(0.001)
    batcher.close()
    outcomes = gather(jobs, Deadline.after(5))
    assert all(isinstance(o, EngineUnavailableError) and "closed" in str(o) for o in outcomes)
    assert run.batches == [["running"]]
    hold.set()
    assert texts(gather(batcher.submit([prompt("again")], Deadline.after(5)), Deadline.after(5))) == ["again"]


def test_an_idle_thread_ends(make: Callable[..., MicroBatcher], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_batching, "IDLE", 0.02)
    batcher = make(Recorder(), max_wait=0)
    for _ in range(3):
        assert texts(gather(batcher.submit([prompt("a")], Deadline.after(5)), Deadline.after(5))) == ["a"]
        until = time.monotonic() + 5
        while any(t.name == "under-test" for t in threading.enumerate()):
            assert time.monotonic() < until
            time.sleep(0.005)


def test_many_threads_and_an_event_loop_share_one_thread(make: Callable[..., MicroBatcher]) -> None:
    batcher = make(Recorder(), max_batch=8, max_wait=0.002)
    deadline = Deadline.after(20)
    got: dict[int, list[str]] = {}

    def sync(i: int) -> None:
        got[i] = texts(gather(batcher.submit([prompt(f"{i}a"), prompt(f"{i}b")], deadline), deadline))

    async def several() -> None:
        jobs = [batcher.submit([prompt(f"{i}a"), prompt(f"{i}b")], deadline) for i in range(32, 64)]
        for i, outcomes in enumerate(await asyncio.gather(*(agather(j, deadline) for j in jobs)), 32):
            got[i] = texts(outcomes)

    threads = [threading.Thread(target=sync, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    asyncio.run(several())
    for thread in threads:
        thread.join()
    assert got == {i: [f"{i}a", f"{i}b"] for i in range(64)}


def test_a_cancelled_task_drops_its_jobs(make: Callable[..., MicroBatcher]) -> None:
    hold = threading.Event()
    batcher = make(Recorder(hold=hold))
    jobs = batcher.submit([prompt("a")], Deadline.after(30))

    async def cancelled() -> None:
        task = asyncio.create_task(agather(jobs, Deadline.after(30)))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert jobs[0].over
    hold.set()


def test_no_prompts_need_no_thread(make: Callable[..., MicroBatcher]) -> None:
    batcher = make(Recorder())
    assert gather(batcher.submit([], Deadline.after(1)), Deadline.after(1)) == []
    assert asyncio.run(agather(batcher.submit([], Deadline.after(1)), Deadline.after(1))) == []
    assert not [t for t in threading.enumerate() if t.name == "under-test"]


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_forked_child_starts_its_own_thread() -> None:
    # In a process of its own: what threads of other packages hold at a fork is not ours to answer for.
    code = """if True:
        import multiprocessing, threading, warnings
        from guardrail_vl.engines._batching import MicroBatcher, gather
        from guardrail_vl.engines.base import Deadline
        from guardrail_vl.prompt_format.base import Completion, Prompt
        warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
        running, hold = threading.Event(), threading.Event()
        forked = []

        def run(jobs, stopping):
            running.set()
            if not forked:
                hold.wait(30)
            for job in jobs:
                job.settle(Completion("done"))

        batcher = MicroBatcher(run, group=lambda p: 0, max_batch=1, max_wait=0, name="t")
        batcher.submit([Prompt(())], Deadline.after(30))
        running.wait()

        def child(answer):
            forked.append(True)
            answer.put([o.text for o in gather(batcher.submit([Prompt(())], Deadline.after(5)), Deadline.after(5))])

        context = multiprocessing.get_context("fork")
        answer = context.SimpleQueue()
        process = context.Process(target=child, args=(answer,))
        process.start()
        process.join(20)
        print(process.exitcode, answer.get() if process.exitcode == 0 else "")
        hold.set()
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "0 ['done']", done.stderr


def test_the_interpreter_exits_while_a_batch_runs() -> None:
    code = """if True:
        import threading
        from guardrail_vl.engines._batching import MicroBatcher
        from guardrail_vl.engines.base import Deadline
        from guardrail_vl.prompt_format.base import Prompt
        running = threading.Event()
        def run(jobs, stopping):
            running.set()
            stopping.wait(60)
        batcher = MicroBatcher(run, group=lambda p: 0, max_batch=1, max_wait=0, name="t")
        batcher.submit([Prompt(())], Deadline.after(60))
        running.wait()
    """
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - started < 30
