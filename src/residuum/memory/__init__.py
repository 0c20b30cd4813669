"""What training keeps in memory: what the backward pass recomputes instead, and what is alive during a step."""

from residuum.memory.checkpointing import MODES as MODES
from residuum.memory.checkpointing import Mode as Mode
from residuum.memory.checkpointing import recompute as recompute
from residuum.memory.footprint import StepCost as StepCost
from residuum.memory.footprint import step_cost as step_cost
from residuum.memory.in_place import choose_in_place as choose_in_place
from residuum.memory.in_place import set_in_place as set_in_place
from residuum.memory.live import Live as Live
from residuum.memory.live import kept_bytes as kept_bytes
from residuum.memory.planner import Plan as Plan
from residuum.memory.planner import Planner as Planner
from residuum.memory.planner import Speed as Speed
from residuum.memory.planner import plan as plan
