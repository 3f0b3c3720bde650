"""Every change of upstream packages beyond settings, registries and subclasses: a function each.

Functions that replace a module's name may be called again. docs/architecture.md, "Changes to
upstream code", lists all of them: what is changed and why, and the test that fails when upstream
moves.
"""
