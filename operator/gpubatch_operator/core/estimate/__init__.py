"""When will it start, when will it be done: a law of each job's duration, and the queue replayed over samples of them.

docs/estimates.md explains the method and shows what was measured.
"""

from gpubatch_operator.core.estimate.estimator import Estimator
from gpubatch_operator.core.estimate.feed import Feed, task_of
from gpubatch_operator.core.estimate.lanes import Lanes, lanes_of
from gpubatch_operator.core.estimate.task import Estimate, Task, Verdict, Work, later

__all__ = ["Estimate", "Estimator", "Feed", "Lanes", "Task", "Verdict", "Work", "lanes_of", "later", "task_of"]
