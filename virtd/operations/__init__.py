"""The operations engine: durable, queued per guest, cancellable, recovered after a crash."""

from virtd.operations.engine import Engine, Submission
from virtd.operations.queues import joined
from virtd.operations.verb import Outcome, Probe, Response, Run, Step, Verb

__all__ = ["Engine", "Outcome", "Probe", "Response", "Run", "Step", "Submission", "Verb", "joined"]
