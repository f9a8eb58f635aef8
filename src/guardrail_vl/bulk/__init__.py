"""Many rows of a file through one guard, into a file of decisions: resumable, in bounded memory, here or on Ray.

What is judged and how is the guard's business; which columns there are is in `_output`.
"""

from guardrail_vl.bulk.moderating import Progress, RayPool, Summary, moderate

__all__ = ["Progress", "RayPool", "Summary", "moderate"]
