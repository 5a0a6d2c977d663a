"""API → MongoDB → Redis queue → MySQL, orchestrated by Dagster, with eight promises kept."""
