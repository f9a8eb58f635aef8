"""A page on which people look at what a guard flagged, and correct its labels. Judges nothing; sends nothing anywhere.

`create_app` is the web application over an `audit.Archive`; `serve` runs it. The page is three files beside this one.
"""

from guardrail_vl.review.app import create_app
from guardrail_vl.review.serving import serve

__all__ = ["create_app", "serve"]
