"""What a plan came to, as files: CSV, Parquet, JSON and one HTML page that needs nothing else.

All of it is made of the cases' results and what these left behind, without running
anything again.  The same results make the same bytes; what the clock says is kept
apart: in the last columns of the tables, in `times` of the JSON, and in the section
`times` of the page.
"""

from services.planner.report.findings import Findings, code_warning, gather_findings
from services.planner.report.writer import write_report

__all__ = ["Findings", "code_warning", "gather_findings", "write_report"]
