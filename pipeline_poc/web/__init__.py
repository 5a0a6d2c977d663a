"""The web server: our endpoints beside the Dagster UI."""
