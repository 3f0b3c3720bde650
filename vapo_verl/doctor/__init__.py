"""`python -m vapo_verl.doctor [+recipe=NAME key=value ...]`: find problems before a run.

Each file checks one topic and yields findings; `checkup.py` orders them. See
docs/doctor.md.
"""
