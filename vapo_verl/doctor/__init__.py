"""`python -m vapo_verl.doctor [+recipe=NAME key=value ...]`: find trouble before the GPUs do.

Each file looks at one topic and yields findings; `checkup.py` puts them in order. See
docs/doctor.md.
"""
