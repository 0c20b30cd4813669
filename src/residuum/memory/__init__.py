"""What training keeps in memory: what the backward pass recomputes instead, and what is alive during a step."""

from residuum.memory.footprint import StepCost as StepCost
from residuum.memory.footprint import step_cost as step_cost
from residuum.memory.live import Live as Live
from residuum.memory.live import kept_bytes as kept_bytes
from residuum.memory.modes import MODES as MODES
from residuum.memory.modes import Mode as Mode
from residuum.memory.modes import recompute as recompute
from residuum.memory.plan import Plan as Plan
from residuum.memory.plan import Planner as Planner
from residuum.memory.plan import Speed as Speed
from residuum.memory.plan import plan as plan
