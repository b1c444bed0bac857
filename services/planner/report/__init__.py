"""Reports of a plan: CSV, Parquet, JSON and one self-contained HTML page.

Reports are made from the results of the cases and from stored artifacts, without running anything.
The same results make the same bytes, but for times, which are kept apart: in the last columns of
the tables, in `times` of the JSON, and in the section `times` of the page.
"""

from services.planner.report.findings import Findings, code_warning, gather_findings
from services.planner.report.paired import PairedComparison, compare
from services.planner.report.writer import write_metrics, write_report

__all__ = [
    "Findings",
    "PairedComparison",
    "code_warning",
    "compare",
    "gather_findings",
    "write_metrics",
    "write_report",
]
