"""Studies on many machines: an Optuna study on PostgreSQL is the queue, folders on a disk that all share are the truth.

Every machine starts the same line. A trial stands for a cell: it waits, a parent claims it, and while it is trained the
parent changes its `beat`. A trial whose beat does not change for a while belongs to a machine that is gone: it fails,
and a new one with the same key waits in its place. No clocks of two machines are compared. Whatever the queue says, a
cell that its folder says is done is not trained again, and a cell is trained under a lock of its own.
"""

import contextlib
import hashlib
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from residuum.ablate.cells import Cell, Plan, Record, is_over
from residuum.errors import ConfigError, RunError, first_line, quoted
from residuum.extras import need

QUEUE = "queue"  # file in the study's folder with the name of its queue
BEAT = 10.0  # seconds between changes of what a parent's trials show
STALE = 90.0  # seconds without a change after which a trial's machine is taken for gone
# A database of an old or plain cluster has no encoding of its own; text comes as such all the same.
_CONNECTING = {"pool_pre_ping": True, "connect_args": {"client_encoding": "utf8", "connect_timeout": 30}}
_LOOK = 1.0  # seconds between looks at a queue that had nothing


@dataclass(frozen=True)
class Storage:
    """Where the queue is, and how long a machine may be silent; raises `ConfigError` for another kind of database."""

    url: str
    beat: float = BEAT
    stale: float = STALE

    def __post_init__(self) -> None:
        kind, sign, _ = self.url.partition("://")
        if kind.startswith("sqlite"):
            raise ConfigError(
                "--storage is an SQLite file, which several machines cannot share: it locks files, which fails on "
                "network disks, and Optuna advises against it for parallel work; give a postgresql:// address, or "
                "leave --storage out on one machine"
            )
        if not sign or kind.partition("+")[0] not in ("postgresql", "postgres"):
            raise ConfigError(f"--storage begins with {quoted(kind[:30])}; it must be postgresql://USER@HOST/DATABASE")

    @property
    def address(self) -> str:
        """As SQLAlchemy has it, for the driver that the extra brings."""
        return "postgresql+psycopg://" + self.url.partition("://")[2]


class Shared:
    """The queue that parents on several machines take their cells from; a `runner.Queue`."""

    def __init__(
        self, plan: Plan, cells: Sequence[Cell], storage: Storage, say: Callable[[str], None], *, part: str = ""
    ) -> None:
        """Join the parents of a study, and put into the queue what is missing; `part` keeps queues of a study apart.

        Raises `RunError` where the database does not answer, or where another machine does not run the same.
        """
        self._optuna = need("optuna", extra="ablate")
        need("psycopg", extra="ablate")
        self._optuna.logging.set_verbosity(self._optuna.logging.ERROR)
        self._plan, self._storage, self._say = plan, storage, say
        self._cells = {cell.key: cell for cell in cells}
        self._mine: dict[str, Any] = {}  # key of a cell to its trial
        self._alone: list[Cell] = []  # claimed, and to be run when nothing else is
        self._seen: dict[int, tuple[Any, float]] = {}  # trial of another to its beat, and since when it is that
        self._beat = self._beaten = self._looked = 0.0
        self._count = 0
        self._name = _queue_of(plan) + part
        self._who = f"parent {uuid.uuid4().hex[:12]}"
        with self._answering():
            self._engine = need("sqlalchemy", extra="ablate").create_engine(storage.address, **_CONNECTING)
            with self._alone_at("residuum"):  # tables are made by one
                kept = self._optuna.storages.RDBStorage(storage.address, engine_kwargs=dict(_CONNECTING))
                sampler = self._optuna.samplers.RandomSampler()
                self._study = self._optuna.create_study(
                    storage=kept, study_name=self._name, load_if_exists=True, sampler=sampler, direction="maximize"
                )
            self._join()
        self.total = sum(not is_over(cell, plan.begin(cell)) for cell in cells)

    # -- a runner's queue ----------------------------------------------------------------------------------------------

    def take(self, busy: int) -> Cell | None:
        """The next cell to begin while so many are trained here, if there is one now."""
        if time.monotonic() - self._looked < _LOOK:
            return None
        with self._answering(), self._alone_at(self._name):
            while self._study.get_trials(deepcopy=False, states=(self._state.WAITING,)):
                trial = self._study.ask()
                cell = self._cells.get(trial.user_attrs.get("key", ""))
                record = None if cell is None else self._plan.begin(cell)
                if cell is None or record is None or self._never(cell, record):
                    self._study.tell(trial, state=self._state.FAIL)
                    continue
                self._mine[cell.key] = trial
                self._show(trial)
                if not (record.alone and busy):
                    return cell
                self._alone.append(cell)
        if self._alone and not busy:
            return self._alone.pop(0)
        self._looked = time.monotonic()
        return None

    def back(self, cell: Cell) -> None:
        """A cell that was taken and not begun."""
        self.ended(cell, "stopped")

    def ended(self, cell: Cell, status: str) -> None:
        """How a cell that was taken has ended; one that was stopped may be gone on with by another machine."""
        trial, self._looked = self._mine.pop(cell.key, None), 0.0
        if trial is None:
            return
        with self._answering(), self._alone_at(self._name), self._finished_elsewhere():
            if status == "done":
                self._study.tell(trial, values=self._value(cell))
            else:
                trial.set_user_attr("ended", status)
                self._study.tell(trial, state=self._state.FAIL)
            if status == "stopped":
                self._add(cell)

    def taken_away(self) -> Sequence[Cell]:
        """Cells trained here that should no longer be, as this machine was taken for gone. Shows that it is not."""
        if time.monotonic() - self._beat < self._storage.beat:
            return ()
        self._beat, gone = time.monotonic(), []
        with self._answering():
            for key, trial in list(self._mine.items()):
                try:
                    self._show(trial)
                except self._optuna.exceptions.UpdateFinishedTrialError:
                    del self._mine[key]
                    gone.append(self._cells[key])
            self._count += 1
            self._tell_of_me()
            self._watch()
            self._beaten = time.monotonic()
        return gone

    def waits(self) -> bool:
        """Whether another machine trains a cell, or one waits."""
        with self._answering():
            live = self._study.get_trials(deepcopy=False, states=(self._state.WAITING, self._state.RUNNING))
        return any(trial.user_attrs.get("key") in self._cells for trial in live)

    def leave(self) -> None:
        """Say that this parent is gone, and give back what it claimed and did not end."""
        with contextlib.suppress(RunError):
            for key in list(self._mine):
                self.ended(self._cells[key], "stopped")
            with self._answering():
                self._study.set_user_attr(self._who, None)
        self._engine.dispose()

    # -- the queue -----------------------------------------------------------------------------------------------------

    @property
    def _state(self) -> Any:
        return self._optuna.trial.TrialState

    def _join(self) -> None:
        """Refuse to run beside what is another study, and add what is missing."""
        own = hashlib.sha256(" ".join(sorted(self._cells)).encode()).hexdigest()[:16]
        self._line = own
        until = time.monotonic() + self._storage.stale
        unlike, first = self._others(own), None
        while unlike:
            first = first or unlike
            moved = {who for who, what in unlike.items() if what != first.get(who, what)}
            if moved:
                what = unlike[moved.pop()]
                raise RunError(
                    f"{quoted(what['machine'])} runs this study with other seeds, variants, code or version of torch; "
                    "start the same line with the same code on every machine"
                )
            if time.monotonic() > until:
                for who in unlike:
                    self._study.set_user_attr(who, None)
            time.sleep(min(_LOOK, self._storage.beat))
            unlike = self._others(own)
        with self._alone_at(self._name):
            self._tell_of_me()
            live = self._study.get_trials(deepcopy=False, states=(self._state.WAITING, self._state.RUNNING))
            known = {trial.user_attrs.get("key") for trial in live}
            for cell in self._cells.values():
                if cell.key not in known and not self._never(cell, self._plan.begin(cell)):
                    self._add(cell)

    def _others(self, own: str) -> dict[str, Any]:
        """Parents that have told of themselves and run something else."""
        told = self._study.user_attrs
        return {who: what for who, what in told.items() if who.startswith("parent ") and what and what["line"] != own}

    def _tell_of_me(self) -> None:
        what = {"machine": platform.node(), "process": os.getpid(), "line": self._line, "beat": self._count}
        self._study.set_user_attr(self._who, what)

    def _never(self, cell: Cell, record: Record) -> bool:
        """Whether a cell is not to be run (again)."""
        return is_over(cell, record) or record.failures > self._plan.study.running.retries

    def _add(self, cell: Cell) -> None:
        attrs = {"key": cell.key, "cell": cell.name}
        self._study.enqueue_trial({}, user_attrs=attrs, skip_if_exists=False)

    def _show(self, trial: Any) -> None:
        trial.set_user_attr("beat", f"{self._who} {self._count}")

    def _watch(self) -> None:
        """Put back what machines that are gone had claimed."""
        now, running = time.monotonic(), self._study.get_trials(deepcopy=False, states=(self._state.RUNNING,))
        own = {trial.number for trial in self._mine.values()}
        others = {trial.number: trial for trial in running if trial.number not in own}
        self._seen = {number: seen for number, seen in self._seen.items() if number in others}
        for number, trial in others.items():
            beat = trial.user_attrs.get("beat")
            if number not in self._seen or self._seen[number][0] != beat:
                self._seen[number] = beat, now
            elif now - self._seen[number][1] > self._storage.stale:
                self._take_over(number, beat)

    def _take_over(self, number: int, beat: Any) -> None:
        with self._alone_at(self._name):
            running = self._study.get_trials(deepcopy=False, states=(self._state.RUNNING,))
            trial = next((one for one in running if one.number == number), None)
            if trial is None or trial.user_attrs.get("beat") != beat:
                return
            self._study.tell(number, state=self._state.FAIL)
            cell = self._cells.get(trial.user_attrs.get("key", ""))
            if cell is not None and not self._never(cell, self._plan.begin(cell)):
                self._add(cell)
                self._say(f"{cell.name}: its machine is gone; the cell waits for another one")

    def _value(self, cell: Cell) -> float:
        """The compared number, for those who look at the queue; what is found is read from the folders."""
        from residuum.train.run import Run

        rows = Run(cell.folder).history()
        tuning = self._plan.study.tuning
        metric = tuning.metric if cell.choosing and tuning is not None else self._plan.study.question.metric
        return float(rows[-1].get(metric, 0.0)) if rows else 0.0

    @contextlib.contextmanager
    def _finished_elsewhere(self) -> Iterator[None]:
        """A trial that was taken away is no longer this parent's to end."""
        with contextlib.suppress(self._optuna.exceptions.UpdateFinishedTrialError, ValueError):
            yield

    @contextlib.contextmanager
    def _alone_at(self, name: str) -> Iterator[None]:
        """Hold PostgreSQL's advisory lock of a name, which ends with the connection."""
        text = need("sqlalchemy", extra="ablate").text
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
        with self._engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:number)"), {"number": number})
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:number)"), {"number": number})

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        errors = need("sqlalchemy.exc", extra="ablate").SQLAlchemyError
        try:
            yield
        except (errors, self._optuna.exceptions.StorageInternalError) as error:
            cause = getattr(error, "orig", None) or getattr(error.__cause__, "orig", None) or error
            raise RunError(
                f"the database of --storage does not answer: {first_line(cause)}; cells were saved, start the same "
                "line again"
            ) from None


def _queue_of(plan: Plan) -> str:
    """The name of the study's queue: a new folder has a new one. Raises `RunError`."""
    path = plan.folder / QUEUE
    try:
        with contextlib.suppress(FileExistsError):
            partial = path.with_name(f".{QUEUE}-{uuid.uuid4().hex}")
            partial.write_text(f"{plan.study.question.name}-{uuid.uuid4().hex[:12]}", encoding="utf-8")
            try:
                os.link(partial, path)  # of several machines one makes it, and it is whole when it is there
            finally:
                partial.unlink()
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"{quoted(str(path))} cannot be written: {error.strerror}") from None
