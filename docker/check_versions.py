"""Fail if an installed package does not match the pins of setup.py and the lock."""

import sys

from vapo_verl.doctor.versions import check_versions

findings = list(check_versions())
print(*findings, sep="\n")
sys.exit(any(finding.status == "error" for finding in findings))
