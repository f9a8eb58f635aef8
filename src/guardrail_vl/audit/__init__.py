"""Who was let through, who was stopped, and why: every decision as a record, and what people say of it.

A record holds no content. With consent (`AuditLog(content=True)`) the turn is kept too, in a table or file of its own.
`AuditLog` writes, as a guard's last hook; `Archive` reads, takes corrections and purges. Judges nothing.
"""

from guardrail_vl.audit.archive import Archive, Entry
from guardrail_vl.audit.log import AuditLog, app_name
from guardrail_vl.audit.records import AuditRecord, Correction, Purged, Query, StoredContent

__all__ = [
    "Archive", "AuditLog", "AuditRecord", "Correction", "Entry", "Purged", "Query", "StoredContent", "app_name",
]  # fmt: skip
