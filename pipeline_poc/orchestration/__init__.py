"""Dagster's view of the pipeline: assets, IO managers, resources, schedule, sensor, reports."""
