"""`python -m vapo_verl.doctor [+recipe=NAME key=value ...]`: find problems before a run.

Each file checks one topic and yields findings; `__main__.diagnose` orders them. See
docs/doctor.md.
"""
