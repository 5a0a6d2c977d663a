"""Dagster's view of the pipeline: assets, checks, IO managers, resources, schedules, sensors, reports."""
