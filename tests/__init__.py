"""Longhaul's tests: unit, integration (real services and processes), golden (values of other code)."""
